"""A stock diffusers pipeline folder, as teachers and students are kept: checked, then loaded; safetensors only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors import SafetensorError, safe_open
from torch import nn

from edgediff import families
from edgediff.artifacts import read_json, sha256
from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.families import Family

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Loaded:
    """A denoising model in float32 evaluation mode, with what its folder says of it."""

    model: Any  # a stock diffusers model of `family`
    scheduler: DDPMScheduler
    family: Family
    sha256: str  # of the weights file

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        _, channels, height, width = self.family.example_inputs(self.model.config)["sample"].shape
        return channels, height, width


def check(folder: Path) -> None:
    """Find out, without loading weights, whether `folder` is a pipeline that can be loaded.

    Raises: BadInputError for a missing config, an unsupported class, or pickled weights only; CorruptArtifactError
    for a damaged weights file.
    """
    if not folder.is_dir():
        raise BadInputError(f"folder not found: `{folder}`")
    for needed in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        if not (folder / needed).is_file():
            raise BadInputError(
                f"not a diffusers pipeline folder, it lacks `{needed}`: `{folder}`",
                "save the whole pipeline with `pipeline.save_pretrained(folder)`",
            )
    families.of(read_json(folder / "unet" / "config.json").get("_class_name", "unknown"))
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


def load(folder: Path) -> Loaded:
    """Load the denoising model and the scheduler of a pipeline folder, in float32 whatever the file holds.

    Raises: what `check` raises, and CorruptArtifactError when weights and config do not fit each other.
    """
    check(folder)
    family = families.of(read_json(folder / "unet" / "config.json")["_class_name"])
    try:
        model, loading = family.model_class.from_pretrained(
            folder / "unet",
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, OSError, json.JSONDecodeError) as error:
        first = str(error).strip().splitlines()[0]
        raise CorruptArtifactError(f"weights and config do not fit each other in `{folder / 'unet'}`", first) from error
    # diffusers fills a tensor that the file lacks with noise and says so in a log line only.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[kind]:
            raise CorruptArtifactError(
                f"weights and config do not fit each other in `{folder / 'unet'}`",
                f"{kind.replace('_', ' ')}: {', '.join(map(str, loading[kind][:5]))}",
            )
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    return Loaded(model.eval(), scheduler, family, sha256(folder / "unet" / WEIGHTS))


def save(folder: Path, model: nn.Module, scheduler: DDPMScheduler) -> None:
    """Write a pipeline that `DDPMPipeline.from_pretrained` loads, with no edgediff installed."""
    DDPMPipeline(unet=model, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)
