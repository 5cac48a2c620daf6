"""The verb `teacher train-autoencoder`: a recipe → a stock AutoencoderKL in whose latents small teachers work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from edgediff import data
from edgediff.artifacts import atomic_folder, up_to_date, write_json, write_manifest
from edgediff.data.images import Images
from edgediff.data.order import evenly, visited
from edgediff.diffusers_config import from_config
from edgediff.errors import BadInputError
from edgediff.metrics.paired import WINDOW, psnr, ssim
from edgediff.output import Output
from edgediff.recipe import PLACES, WATCHING, AutoencoderRecipe
from edgediff.samples import PIXELS_AT_ONCE
from edgediff.training import checkpoint, processes
from edgediff.training.announcement import announce
from edgediff.training.loop import LOG_NAME, train

SCORED = 2000  # test images whose reconstruction the manifest scores
MOST_AT_ONCE = 250


@dataclass(frozen=True)
class ImageBatch:
    """Images (B, C, H, W) in [-1, 1] of one training step."""

    images: Tensor


class Autoencoding(torch.nn.Module):
    """Reconstruction with a little pressure on the latents (Rombach et al. 2022, without their adversary).

    L1 + L2 per pixel + kl_weight · KL(posterior || N(0, 1)) per pixel. An adversarial or perceptual term would sharpen
    photographs; images of 28 pixels come out sharp without.
    """

    def __init__(self, autoencoder: Any, kl_weight: float) -> None:
        super().__init__()
        self.autoencoder, self.kl_weight = autoencoder, kl_weight

    def forward(self, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and its parts, for `training.loop.train`."""
        posterior = self.autoencoder.encode(batch.images).latent_dist
        decoded = self.autoencoder.decode(posterior.sample()).sample
        error = decoded - batch.images
        reconstruction = error.abs().mean() + error.square().mean()
        kl = posterior.kl().mean() / batch.images[0].numel()
        return reconstruction + self.kl_weight * kl, {"reconstruction": reconstruction.detach(), "kl": kl.detach()}


class ImageBatches:
    """Batches of images, every one a function of positions in the training."""

    def __init__(self, images: Images, seed: int) -> None:
        self.images, self.seed = images, seed

    def __call__(self, step: int, positions: Tensor) -> ImageBatch:
        """Return the images at positions (B,)."""
        indices = visited(positions, count=len(self.images), seed=self.seed)
        return ImageBatch(self.images.batch(indices).to(processes.device()))


def train_autoencoder(recipe: AutoencoderRecipe, out: Path, output: Output, *, resume: bool) -> Path:
    """Train the recipe's autoencoder and write `out/vae`, with `scaling_factor` set to make its latents' std 1.

    Returns: the folder, as a pipeline's `vae/`. Raises: what `train_teacher` raises.
    """
    folder, settings = out / "vae", recipe.training
    torch.manual_seed(settings.seed)
    autoencoder = from_config(AutoencoderKL, recipe.config, "config").to(processes.device())
    config = autoencoder.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    smallest = 2 ** (len(config.block_out_channels) - 1)
    if config.sample_size % smallest:
        raise BadInputError(
            f"sample_size {config.sample_size} cannot be halved {len(config.block_out_channels) - 1} times",
            f"give one that {smallest} divides, or fewer levels (block_out_channels)",
        )
    with processes.main_first():
        images = data.load(recipe.data, "train", shape=shape, output=output)
        test = data.load(recipe.data, "test", shape=shape, output=output)
        inputs = {"images": images.sha256}
    described = recipe.model_dump(mode="json")
    aside = [*(f"training.{name}" for name in WATCHING), *PLACES]
    if up_to_date(folder, stage="autoencoder", config=described, inputs=inputs, aside=aside):
        output.stage("autoencoder", f"up to date: `{folder}`")
        return folder
    done = checkpoint.finished_steps(out / "checkpoints") if resume else 0
    announce("autoencoder", recipe.name, settings, out / "checkpoints", output, resume=resume)
    with output.progress("train", settings.steps, done) as progress:
        result = train(
            Autoencoding(autoencoder, recipe.kl_weight),
            ImageBatches(images, settings.seed),
            settings,
            checkpoints=out / "checkpoints",
            log=out / LOG_NAME,
            identity={"model": described["config"], "kl_weight": recipe.kl_weight, **inputs},
            resume=resume,
            on_step=lambda record: progress.advance(note=f"loss {record.values['loss']:.4f}"),
        )
    if not processes.is_main():
        return folder
    autoencoder.register_to_config(scaling_factor=round(1 / _latent_std(autoencoder, images), 5))
    scores = _reconstruction(autoencoder, test)
    with atomic_folder(folder) as temporary:
        autoencoder.half().save_pretrained(temporary, safe_serialization=True)
        write_json(temporary / "quality.json", scores)
        write_manifest(
            temporary, stage="autoencoder", config=described, inputs=inputs, steps=result.steps, reconstruction=scores
        )
    similarity = f", SSIM {scores['ssim']:.3f}" if "ssim" in scores else ""
    output.stage("autoencoder", f"`{folder}`: {scores['psnr']:.1f} dB{similarity} on test images")
    return folder


@torch.no_grad()
def _latent_std(autoencoder: Any, images: Images) -> float:
    """Return the standard deviation of latents over all elements, of evenly spread images."""
    chunks = evenly(len(images), min(SCORED, len(images))).split(_at_once(images))
    latents = [autoencoder.encode(images.batch(chunk).to(processes.device())).latent_dist.sample() for chunk in chunks]
    return float(torch.cat(latents).std())


@torch.no_grad()
def _reconstruction(autoencoder: Any, images: Images) -> dict[str, float]:
    """Return PSNR (dB) and SSIM of reconstructions from the posterior's mean, means over test images.

    Images smaller than its window have no SSIM.
    """
    measures = {"psnr": psnr} | ({"ssim": ssim} if min(images.shape[1:]) >= WINDOW else {})
    found: dict[str, list[float]] = {name: [] for name in measures}
    for chunk in evenly(len(images), min(SCORED, len(images))).split(_at_once(images)):
        batch = images.batch(chunk)
        posterior = autoencoder.encode(batch.to(processes.device())).latent_dist
        decoded = autoencoder.decode(posterior.mode()).sample.clamp(-1, 1).cpu()
        for name, measure in measures.items():
            found[name] += measure(decoded, batch).tolist()
    return {name: sum(values) / len(values) for name, values in found.items()}


def _at_once(images: Images) -> int:
    """Return how many images the autoencoder takes at once."""
    _, height, width = images.shape
    return max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // (height * width)))
