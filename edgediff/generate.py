"""The verb `generate`: a teacher → a folder of its images, to distil from where no data set may be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgediff import model_folder, teacher
from edgediff.artifacts import atomic_file, read_object, write_manifest
from edgediff.asked import Asked, asked
from edgediff.backends import best_device
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.data import metadata
from edgediff.data.generated import IMAGES, STAGE
from edgediff.data.images import to_bytes
from edgediff.data.metadata import Metadata
from edgediff.data.shards import refuse_another
from edgediff.diffusion.denoiser import Denoiser
from edgediff.diffusion.guidance import Guided
from edgediff.diffusion.sampler import check_steps, sample, stepper, uneven, words
from edgediff.encoding import parts
from edgediff.errors import BadInputError
from edgediff.model_folder import Loaded
from edgediff.output import Output
from edgediff.quality import clips
from edgediff.recipe import GenerateConfig
from edgediff.samples import decoder, image_shape

CHANNELS = (1, 3)  # of what an image file can hold


def generate(name: str, out: Path, config: GenerateConfig, output: Output) -> Path:
    """Write `config.num_images` images of a teacher into `out`/train as PNG files named by their seeds.

    With them as data, a distillation is data-free in the sense of DKDM (Xiang et al. 2025): x0 and targets both come
    from the teacher. A conditional teacher draws each under a class or a caption, which `metadata.jsonl` beside the
    images says of it. Images that are there already are kept, so an interrupted command goes on where it was.

    Returns: `out`, an image folder for a recipe's `data.name`. Raises: BadInputError for an unknown teacher, one
    whose samples are no images and cannot be decoded, what `asked` refuses, or a folder of other images.
    """
    folder = teacher.resolve(name).folder
    loaded = model_folder.load(folder)
    channels, _, _ = image_shape(loaded)
    if channels not in CHANNELS:
        raise BadInputError(
            f"samples of {name} have {channels} channels, so they are no images",
            "generating needs a teacher that works in pixels, or that has its autoencoder in its folder",
        )
    check_steps(loaded.scheduler.config, config.num_inference_steps)
    told = asked(config, loaded, folder, output)
    settings = config.model_dump(mode="json", include={"num_inference_steps", "clip_sample", "guidance_scale"})
    if uneven(loaded.scheduler, config.num_inference_steps):
        settings["sampler"] = words(loaded.scheduler, config.num_inference_steps)
    described, inputs = {STAGE: settings}, _inputs(loaded, told)
    _refuse_other_images(out, described, inputs)
    write_manifest(out, stage=STAGE, config=described, inputs=inputs)  # before the images, which it explains
    seeds = range(config.first_seed, config.first_seed + config.num_images)
    if told:
        _describe(out / IMAGES, {_name(seed): {told.column: told.of(seed)} for seed in seeds})
    missing = [seed for seed in seeds if not (out / IMAGES / _name(seed)).exists()]
    output.stage("generate", f"{len(missing):,} images of {config.num_images:,}")
    draw = _drawing(loaded, config, told)
    with output.progress("draw images", config.num_images, config.num_images - len(missing)) as progress:
        for first in range(0, len(missing), config.batch_size):
            batch = missing[first : first + config.batch_size]
            for seed, pixels in zip(batch, draw(batch), strict=True):
                with atomic_file(out / IMAGES / _name(seed)) as temporary:
                    Image.fromarray(np.moveaxis(pixels, 0, -1).squeeze()).save(temporary, format="png")
            progress.advance(len(batch))
    output.stage("generate", f"`{out}`; use it with `data.name={out}`")
    return out


def _name(seed: int) -> str:
    return f"{seed:08}.png"


def _inputs(loaded: Loaded, told: Asked | None) -> dict[str, str]:
    inputs = {"teacher": loaded.sha256}
    if loaded.autoencoder:
        inputs["autoencoder"] = parts.fingerprint(loaded.autoencoder, model_folder.STEM)
    return {**inputs, "asked": told.sha256} if told else inputs


def _worded(config: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    """Return what images depend on, by the words for it."""
    return {**config[STAGE], **{"classes or captions" if name == "asked" else name: of for name, of in inputs.items()}}


def _describe(folder: Path, told: dict[str, dict[str, Any]]) -> None:
    """Say in the folder's table what images were asked to show; rows of other images stay."""
    table = Metadata.of(folder)
    rows = {row[metadata.FILE]: row for row in table.rows} if table else {}
    rows |= {name: {metadata.FILE: name, **of_image} for name, of_image in told.items()}
    metadata.write(folder, [rows[name] for name in sorted(rows)])


def _drawing(
    loaded: Loaded, config: GenerateConfig, told: Asked | None
) -> Callable[[Sequence[int]], NDArray[np.uint8]]:
    """Return what draws the images (N, C, H, W) of seeds as they are saved."""
    denoiser: Denoiser = PyTorchDenoiser(loaded.model, loaded.family, best_device())
    if told and config.guidance_scale != 1:
        denoiser = Guided(denoiser, config.guidance_scale, told.unconditional)
    scheduler, decode = stepper(loaded.scheduler, clip_sample=clips(loaded, config)), decoder(loaded)

    def draw(seeds: Sequence[int]) -> NDArray[np.uint8]:
        drawn = sample(
            denoiser,
            scheduler,
            seeds,
            shape=loaded.sample_shape,
            num_inference_steps=config.num_inference_steps,
            batch_size=config.batch_size,
            conditioning=lambda places: told.conditioning([seeds[place] for place in places]) if told else {},
        )
        return to_bytes(decode(drawn))

    return draw


def _refuse_other_images(out: Path, config: dict[str, Any], inputs: dict[str, str]) -> None:
    if not out.exists() or not any(out.iterdir()):
        return
    hint = "choose another folder with `--out`"
    manifest = read_object(out / "manifest.json") if (out / "manifest.json").exists() else {}
    if manifest.get("stage") != STAGE:
        raise BadInputError(f"folder holds other files: `{out}`", hint)
    refuse_another(
        "folder of images", out, _worded(config, inputs), _worded(manifest["config"], manifest["inputs"]), hint
    )
