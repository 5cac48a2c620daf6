"""A stock diffusers pipeline folder, as teachers and students are kept: checked, then loaded; safetensors only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from edgediff import families
from edgediff.artifacts import MANIFEST, digest, read_object, sha256, verify, write_json
from edgediff.diffusion.noising import check_prediction_type
from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.families import Family

INDEX, SCHEDULER_CONFIG = "model_index.json", "scheduler/scheduler_config.json"
WEIGHTS, SHARDS = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
ALL_WEIGHTS = "diffusion_pytorch_model*.safetensors"  # one file, several shards of one, or a half-precision variant
COMPONENTS = ("unet", "transformer")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Loaded:
    """A denoising model in evaluation mode, with what its folder says of it."""

    model: Any  # a stock diffusers model of `family`
    scheduler: Any  # DDPMScheduler, or FlowMatchEulerDiscreteScheduler
    family: Family
    sha256: str  # `fingerprint` of the folder
    folder: Path | None = None  # where it was loaded from, with the pipeline's other parts

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        return self.family.sample_shape(self.model.config)

    @property
    def autoencoder(self) -> Path | None:
        """The pipeline's autoencoder, for a model whose samples are latents."""
        return self.folder / "vae" if self.folder and (self.folder / "vae" / "config.json").is_file() else None


def component(folder: Path) -> Path:
    """Return the sub-folder of a pipeline that holds its denoising model.

    Raises: BadInputError for a folder that is missing or no diffusers pipeline.
    """
    if not folder.is_dir():
        raise BadInputError(f"folder not found: `{folder}`")
    found = [folder / name for name in COMPONENTS if (folder / name / "config.json").is_file()]
    lacking = f"{COMPONENTS[0]}/config.json" if not found else None
    lacking = lacking or next((name for name in (INDEX, SCHEDULER_CONFIG) if not (folder / name).is_file()), None)
    if lacking:
        raise BadInputError(
            f"not a diffusers pipeline folder, it lacks `{lacking}`: `{folder}`",
            "save the whole pipeline with `pipeline.save_pretrained(folder)`",
        )
    return found[0]


def check(folder: Path) -> None:
    """Find out, without loading weights, whether `folder` is a pipeline that can be loaded.

    Raises: BadInputError for a missing config, an unsupported class, or pickled weights only; CorruptArtifactError
    for a damaged weights file.
    """
    of_model = component(folder)
    families.of(read_object(of_model / "config.json").get("_class_name", "unknown"))
    weights = sorted(of_model.glob(ALL_WEIGHTS))
    if not weights:
        pickles = sorted(file.name for pattern in PICKLES for file in of_model.glob(pattern))
        if pickles:
            raise BadInputError(
                f"weights are pickled, which can run code when loaded: `{of_model / pickles[0]}`",
                "convert them once where you trust them: `pipeline.save_pretrained(folder, safe_serialization=True)`",
            )
        raise BadInputError(f"weights not found: `{of_model / WEIGHTS}`")
    for file in weights:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise CorruptArtifactError(
                f"weights file is damaged or incomplete: `{file}`", f"fetch it again ({error})"
            ) from error


def fingerprint(folder: Path) -> str:
    """Return one sha256 for everything that `load` reads: weights, model config, scheduler config; loads no model.

    Raises: what `check` raises, and CorruptArtifactError for files that are not what the folder's manifest records,
    where it has one.
    """
    check(folder)
    of_model = component(folder)
    files = [of_model / "config.json", folder / SCHEDULER_CONFIG, *sorted(of_model.glob(ALL_WEIGHTS))]
    found = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
    if (folder / MANIFEST).is_file():
        verify(folder, found)
    return digest(found)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Loaded:
    """Load the denoising model and the scheduler of a pipeline folder, in `dtype` whatever the file holds.

    Raises: what `fingerprint` raises; CorruptArtifactError when weights and config do not fit each other;
    BadInputError for a scheduler that no training here can use.
    """
    content, of_model = fingerprint(folder), component(folder)
    family = families.of(read_object(of_model / "config.json")["_class_name"])
    plain = any((of_model / name).is_file() for name in (WEIGHTS, SHARDS))
    try:
        model, loading = family.model_class.from_pretrained(
            of_model,
            torch_dtype=dtype,
            variant=None if plain else "fp16",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, OSError) as error:  # whatever a config breaks
        first = str(error).strip().splitlines()[0]
        raise CorruptArtifactError(f"weights and config do not fit each other in `{of_model}`", first) from error
    # diffusers fills a tensor that the file lacks with noise and says so in a log line only.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[kind]:
            raise CorruptArtifactError(
                f"weights and config do not fit each other in `{of_model}`",
                f"{kind.replace('_', ' ')}: {', '.join(map(str, loading[kind][:5]))}",
            )
    return Loaded(model.eval(), _scheduler(folder), family, content, folder)


def _scheduler(folder: Path) -> Any:
    """Load the noise schedule; a sampler of another class (DDIM, PNDM) says the same of it under the same names."""
    path = folder / SCHEDULER_CONFIG
    config = read_object(path)
    flow = "FlowMatch" in config.get("_class_name", "")
    try:
        scheduler = (FlowMatchEulerDiscreteScheduler if flow else DDPMScheduler).from_config(config)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise BadInputError(f"scheduler config cannot be used: `{path}`", f"{error}") from error
    if not flow:
        check_prediction_type(scheduler.config.prediction_type)
    return scheduler


def save(folder: Path, model: nn.Module, scheduler: Any, like: Path | None = None) -> None:
    """Write a pipeline that diffusers loads with no edgediff installed.

    Args: like: the pipeline folder that the model was made from: its class and its other parts (autoencoder, text
    encoders, tokenizers) come along, as hard links where the file system can, for they are large and the same.
    """
    if like is None or read_object(like / INDEX)["_class_name"] == "DDPMPipeline":
        DDPMPipeline(unet=model, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)
        return
    index, own = read_object(like / INDEX), families.of(model).component
    for name, what in index.items():
        if isinstance(what, list) and name not in (own, "scheduler") and (like / name).is_dir():
            shutil.copytree(like / name, folder / name, copy_function=_link_or_copy)
    cast(Any, model).save_pretrained(folder / own, safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
    write_json(folder / INDEX, {**index, "scheduler": ["diffusers", type(scheduler).__name__]})


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(Path(source).resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def decoder(loaded: Loaded, device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """Return what makes images (N, C, H, W) of a model's samples: its pipeline's autoencoder, or nothing at all."""
    return (lambda samples: samples) if loaded.autoencoder is None else Decoder(loaded.autoencoder, device)


class Decoder:
    """From samples of a model to images: what a pipeline's autoencoder does to latents."""

    def __init__(self, folder: Path, device: str = "cpu", batch_size: int = 16) -> None:
        """Load the autoencoder in `folder`, in float32: in half precision those of SD overflow into black images."""
        self.autoencoder: Any = AutoencoderKL.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        self.autoencoder.eval().to(device)
        self.device, self.batch_size = device, batch_size

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> Tensor:
        """Return the images (N, C, H, W) of latents (N, c, h, w) scaled as the model sees them, float32 on the CPU."""
        config = self.autoencoder.config
        shift = config.shift_factor or 0.0
        parts = [
            self.autoencoder.decode(part.to(self.device) / config.scaling_factor + shift).sample.float().cpu()
            for part in latents.split(self.batch_size)
        ]
        return torch.cat(parts)
