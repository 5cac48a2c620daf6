"""The verb `generate`: a teacher → a folder of its images, to distil from where no data set may be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgediff import model_folder, teacher
from edgediff.artifacts import atomic_file, read_object, write_manifest
from edgediff.backends import best_device
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.data.images import to_bytes
from edgediff.diffusion.sampler import check_steps, sample, stepper
from edgediff.errors import BadInputError
from edgediff.output import Output
from edgediff.recipe import EvaluateConfig

CHANNELS = (1, 3)  # of what an image file can hold


def generate(name: str, out: Path, config: EvaluateConfig, output: Output) -> Path:
    """Write `config.num_images` images of a teacher into `out`/train as PNG files named by their seeds.

    With them as data, a distillation is data-free in the sense of DKDM (Xiang et al. 2025): x0 and targets both come
    from the teacher. Images that are there already are kept, so an interrupted command goes on where it was.

    Returns: `out`, an image folder for a recipe's `data.name`. Raises: BadInputError for an unknown teacher, one
    whose samples are no images, a conditional
    one, or a folder of other images.
    """
    loaded = model_folder.load(teacher.resolve(name).folder)
    if loaded.sample_shape[0] not in CHANNELS:
        raise BadInputError(
            f"samples of {name} have {loaded.sample_shape[0]} channels, so they are no images",
            "generating needs a teacher that works in pixels",
        )
    told = loaded.family.conditioning_names(loaded.model.config)
    if told:
        raise BadInputError(
            f"{name} draws what it is told by {', '.join(told)}, and this command tells a teacher nothing",
            "generating needs an unconditional teacher",
        )
    check_steps(loaded.scheduler.config, config.num_inference_steps)
    settings = config.model_dump(mode="json", include={"num_inference_steps", "clip_sample"})
    described, inputs = {"generate": settings}, {"teacher": loaded.sha256}
    _refuse_other_images(out, described, inputs)
    write_manifest(out, stage="generate", config=described, inputs=inputs)  # before the images, which it explains
    loaded.model.to(best_device())
    denoiser = PyTorchDenoiser(loaded.model, loaded.family, best_device())
    scheduler = stepper(loaded.scheduler, clip_sample=config.clip_sample)
    seeds = range(config.first_seed, config.first_seed + config.num_images)
    missing = [seed for seed in seeds if not _file(out, seed).exists()]
    output.stage("generate", f"{len(missing):,} images of {config.num_images:,}")
    with output.progress("draw images", config.num_images, config.num_images - len(missing)) as progress:
        for first in range(0, len(missing), config.batch_size):
            batch = missing[first : first + config.batch_size]
            images = sample(
                denoiser,
                scheduler,
                batch,
                shape=loaded.sample_shape,
                num_inference_steps=config.num_inference_steps,
                batch_size=config.batch_size,
            )
            for seed, pixels in zip(batch, to_bytes(images), strict=True):
                with atomic_file(_file(out, seed)) as temporary:
                    Image.fromarray(np.moveaxis(pixels, 0, -1).squeeze()).save(temporary, format="png")
            progress.advance(len(batch))
    output.stage("generate", f"`{out}`; use it with `data.name={out}`")
    return out


def _file(out: Path, seed: int) -> Path:
    return out / "train" / f"{seed:08}.png"


def _refuse_other_images(out: Path, config: dict[str, Any], inputs: dict[str, str]) -> None:
    if not out.exists() or not any(out.iterdir()):
        return
    manifest = read_object(out / "manifest.json") if (out / "manifest.json").exists() else {}
    if (manifest.get("config"), manifest.get("inputs")) != (config, inputs):
        raise BadInputError(
            f"folder holds other files, or images of other settings: `{out}`", "choose another folder with `--out`"
        )
