"""A stock diffusers pipeline folder, as teachers and students are kept: checked, then loaded; safetensors only.

A teacher may also be a folder whose root is the model itself, with the scheduler's config beside it: so are DDPM's
published, whose pipeline has no other parts, and so does `model.save_pretrained` leave one.
"""

from __future__ import annotations

import inspect
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError, safe_open
from torch import nn

from edgediff import families
from edgediff.artifacts import MANIFEST, digest, read_object, sha256, verify, write_json
from edgediff.diffusion import schedule
from edgediff.diffusion.noising import check_prediction_type
from edgediff.encoding import parts
from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.families import Family

INDEX, CONFIG = "model_index.json", "config.json"
SCHEDULER_CONFIGS = ("scheduler/scheduler_config.json", "scheduler_config.json")  # the pipeline's comes first
STEM = "diffusion_pytorch_model"  # how the weights' files begin
WEIGHTS = f"{STEM}.safetensors"
COMPONENTS = ("unet", "transformer")
UNCONDITIONAL = "DDPMPipeline"  # whose only parts are model and scheduler
LONE = "UNet2DModel"  # its model, which needs no pipeline's folder around it


@dataclass(frozen=True)
class Loaded:
    """A denoising model in float32 evaluation mode, with what its folder says of it."""

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
        return autoencoder(self.folder) if self.folder else None


def autoencoder(folder: Path) -> Path | None:
    """Return where a folder has its autoencoder; None for models of pixels."""
    found = folder / "vae"
    return found if (found / CONFIG).is_file() else None


def component(folder: Path) -> Path:
    """Return where a folder holds its denoising model: a sub-folder of a pipeline, or the root.

    Raises: BadInputError for a folder that is missing, or neither a diffusers pipeline nor a model that needs no other
    parts than its scheduler.
    """
    if not folder.is_dir():
        raise BadInputError(f"folder not found: `{folder}`")
    places = (*(folder / name for name in COMPONENTS), folder)
    found = next((place for place in places if (place / CONFIG).is_file()), None)
    if found is None:
        raise _lacking(folder, f"{COMPONENTS[0]}/{CONFIG}")
    lone = found == folder and read_object(found / CONFIG).get("_class_name") == LONE
    if not lone and not (folder / INDEX).is_file():
        raise _lacking(folder, INDEX)
    scheduler_config(folder)
    return found


def scheduler_config(folder: Path) -> Path:
    """Return the config of a folder's noise schedule.

    Raises: BadInputError when there is none.
    """
    found = next((folder / name for name in SCHEDULER_CONFIGS if (folder / name).is_file()), None)
    if found is None:
        raise _lacking(folder, SCHEDULER_CONFIGS[0])
    return found


def pipeline_class(folder: Path) -> str:
    """Return the stock class that draws with the model in a folder."""
    return read_object(folder / INDEX)["_class_name"] if (folder / INDEX).is_file() else UNCONDITIONAL


def _lacking(folder: Path, name: str) -> BadInputError:
    return BadInputError(
        f"not a diffusers pipeline folder, it lacks `{name}`: `{folder}`",
        f"save the whole pipeline with `pipeline.save_pretrained(folder)`; beside a lone {LONE} a "
        "`scheduler_config.json` is enough",
    )


def check(folder: Path) -> None:
    """Find out, without loading weights, whether `folder` is a pipeline that can be loaded.

    Raises: BadInputError for a missing config, an unsupported class, or pickled weights only; CorruptArtifactError
    for a damaged weights file.
    """
    of_model = component(folder)
    families.of(read_object(of_model / CONFIG).get("_class_name", "unknown"))
    _, files = parts.weights(of_model, STEM)
    for file in (file for file in files if file.suffix == ".safetensors"):
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
    _, weights = parts.weights(of_model, STEM)
    files = [of_model / CONFIG, scheduler_config(folder), *weights]
    found = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
    if (folder / MANIFEST).is_file():
        verify(folder, found)
    return digest(found)


def load(folder: Path) -> Loaded:
    """Load the denoising model and the scheduler of a pipeline folder, in float32 whatever the file holds.

    Raises: what `fingerprint` raises; CorruptArtifactError when weights and config do not fit each other;
    BadInputError for a scheduler that no training here can use.
    """
    content, of_model = fingerprint(folder), component(folder)
    family = families.of(read_object(of_model / CONFIG)["_class_name"])
    variant, _ = parts.weights(of_model, STEM)
    try:
        model, loading = family.model_class.from_pretrained(
            of_model,
            torch_dtype=torch.float32,
            variant=variant,
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
    return Loaded(model.eval(), noise_schedule(folder), family, content, folder)


def noise_schedule(folder: Path) -> Any:
    """Load the noise schedule; a sampler of another class (DDIM, PNDM) says the same of it under the same names.

    Raises: BadInputError for a schedule that no training here can use.
    """
    path = scheduler_config(folder)
    config = read_object(path)
    flow = "FlowMatch" in config.get("_class_name", "")
    if not flow and not _of_betas(config):
        # Of sigmas, EDM's: DDPMScheduler would take its own betas instead, and nobody would notice.
        raise BadInputError(
            f"scheduler cannot be used: {config['_class_name']} knows no betas: `{path}`",
            "schedules of DDPM's kind and of flow matching are supported",
        )
    if not flow and autoencoder(folder) and "clip_sample" not in config:
        config["clip_sample"] = False  # DDPMScheduler's default would clip latents, which have no range
    try:
        scheduler = (FlowMatchEulerDiscreteScheduler if flow else DDPMScheduler).from_config(config)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise BadInputError(f"scheduler config cannot be used: `{path}`", f"{error}") from error
    if not flow:
        check_prediction_type(scheduler.config.prediction_type)
    return scheduler


def _of_betas(config: dict[str, Any]) -> bool:
    """Tell whether a scheduler's config is of DDPM's kind: by what it says, or by what its class would say."""
    name = config.get("_class_name") or "DDPMScheduler"
    kind = getattr(diffusers, name, None)
    return bool(config.keys() & set(schedule.BETAS)) or (
        kind is not None and "beta_start" in inspect.signature(kind).parameters
    )


def save(folder: Path, model: nn.Module, scheduler: Any, like: Path | None = None) -> None:
    """Write a pipeline that diffusers loads with no edgediff installed.

    Args: like: the pipeline folder that the model was made from: its class and its other parts (autoencoder, text
    encoders, tokenizers) come along, as hard links where the file system can, for they are large and the same.
    """
    if like is None or pipeline_class(like) == UNCONDITIONAL:
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
