"""A stock diffusers pipeline folder, as teachers and students are kept: checked, then loaded; safetensors only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors import SafetensorError, safe_open
from torch import nn

from edgediff import families
from edgediff.artifacts import MANIFEST, digest, read_object, sha256, verify
from edgediff.diffusion.noising import check_prediction_type
from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.families import Family

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG, SCHEDULER_CONFIG = "unet/config.json", "scheduler/scheduler_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Loaded:
    """A denoising model in float32 evaluation mode, with what its folder says of it."""

    model: Any  # a stock diffusers model of `family`
    scheduler: DDPMScheduler
    family: Family
    sha256: str  # `fingerprint` of the folder

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        return self.family.sample_shape(self.model.config)


def check(folder: Path) -> None:
    """Find out, without loading weights, whether `folder` is a pipeline that can be loaded.

    Raises: BadInputError for a missing config, an unsupported class, or pickled weights only; CorruptArtifactError
    for a damaged weights file.
    """
    if not folder.is_dir():
        raise BadInputError(f"folder not found: `{folder}`")
    for needed in ("model_index.json", CONFIG, SCHEDULER_CONFIG):
        if not (folder / needed).is_file():
            raise BadInputError(
                f"not a diffusers pipeline folder, it lacks `{needed}`: `{folder}`",
                "save the whole pipeline with `pipeline.save_pretrained(folder)`",
            )
    families.of(read_object(folder / CONFIG).get("_class_name", "unknown"))
    weights = folder / "unet" / WEIGHTS
    if not weights.is_file():
        pickles = sorted(file.name for pattern in PICKLES for file in (folder / "unet").glob(pattern))
        if pickles:
            raise BadInputError(
                f"weights are pickled, which can run code when loaded: `{folder / 'unet' / pickles[0]}`",
                "convert them once where you trust them: `pipeline.save_pretrained(folder, safe_serialization=True)`",
            )
        raise BadInputError(f"weights not found: `{weights}`")
    try:
        with safe_open(weights, framework="pt"):
            pass
    except SafetensorError as error:
        raise CorruptArtifactError(
            f"weights file is damaged or incomplete: `{weights}`", f"fetch it again ({error})"
        ) from error


def fingerprint(folder: Path) -> str:
    """Return one sha256 for everything that `load` reads: weights, model config, scheduler config; loads no model.

    Raises: what `check` raises, and CorruptArtifactError for files that are not what the folder's manifest records,
    where it has one.
    """
    check(folder)
    found = {name: sha256(folder / name) for name in (CONFIG, SCHEDULER_CONFIG, f"unet/{WEIGHTS}")}
    if (folder / MANIFEST).is_file():
        verify(folder, found)
    return digest(found)


def load(folder: Path) -> Loaded:
    """Load the denoising model and the scheduler of a pipeline folder, in float32 whatever the file holds.

    Raises: what `fingerprint` raises; CorruptArtifactError when weights and config do not fit each other;
    BadInputError for a scheduler that no training here can use.
    """
    content = fingerprint(folder)
    family = families.of(read_object(folder / CONFIG)["_class_name"])
    try:
        model, loading = family.model_class.from_pretrained(
            folder / "unet",
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, OSError) as error:  # whatever a config breaks
        first = str(error).strip().splitlines()[0]
        raise CorruptArtifactError(f"weights and config do not fit each other in `{folder / 'unet'}`", first) from error
    # diffusers fills a tensor that the file lacks with noise and says so in a log line only.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[kind]:
            raise CorruptArtifactError(
                f"weights and config do not fit each other in `{folder / 'unet'}`",
                f"{kind.replace('_', ' ')}: {', '.join(map(str, loading[kind][:5]))}",
            )
    return Loaded(model.eval(), _scheduler(folder), family, content)


def _scheduler(folder: Path) -> DDPMScheduler:
    """Load the noise schedule; a sampler of another class (DDIM, PNDM) says the same of it under the same names."""
    path = folder / SCHEDULER_CONFIG
    config = read_object(path)
    try:
        scheduler = DDPMScheduler.from_config(config)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise BadInputError(f"scheduler config cannot be used: `{path}`", f"{error}") from error
    check_prediction_type(scheduler.config.prediction_type)
    return scheduler


def save(folder: Path, model: nn.Module, scheduler: DDPMScheduler) -> None:
    """Write a pipeline that `DDPMPipeline.from_pretrained` loads, with no edgediff installed."""
    DDPMPipeline(unet=model, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)
