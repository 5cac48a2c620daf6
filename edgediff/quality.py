"""How images of a model are drawn and scored: one profile, for students in `evaluate` and for teachers' cards alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgediff.data.images import Images, from_bytes, to_bytes
from edgediff.data.order import evenly
from edgediff.diffusion.denoiser import Denoiser
from edgediff.diffusion.guidance import Guided
from edgediff.diffusion.sampler import sample, stepper, words
from edgediff.diffusion.schedule import is_flow
from edgediff.metrics.divergence import noise_level, noise_limit
from edgediff.metrics.features import FeatureExtractor
from edgediff.metrics.frechet import GaussianStatistics, frechet_distance, gaussian_statistics
from edgediff.metrics.kid import kid
from edgediff.metrics.paired import WINDOW, psnr, ssim
from edgediff.metrics.precision_recall import precision_recall
from edgediff.model_folder import Loaded
from edgediff.output import Output
from edgediff.recipe import FEWEST_SCORED, DataConfig, DrawConfig, EvaluateConfig
from edgediff.results import QualityProfile, QualityRow, Reference
from edgediff.samples import Samples, decoder, kind

KID_SUBSET_SIZE, KID_SUBSETS = 1000, 100
NEIGHBOURS = FEWEST_SCORED - 1  # of precision and recall: 3, as Kynkaanniemi et al. 2019 have it
DIVERGED = 1.5  # abs(x) beyond which a pixel of an image in [-1, 1] is no rounding of one
IDENTICAL_PSNR = 100.0  # dB; stands for infinity, which JSON cannot hold and a mean cannot survive
CHUNK = 256  # images between two advances of the progress bar


@dataclass(frozen=True)
class Drawn:
    """Images of one model, as they would be saved: (N, C, H, W) uint8, and how the raw ones were out of range.

    `diverged_share` is one of pixels; `finite` (N,) says which images hold neither NaN nor infinity.
    """

    pixels: NDArray[np.uint8]
    backend: str
    diverged_share: float
    finite: NDArray[np.bool_]

    def images(self) -> Tensor:
        """Return the images as float32 (N, C, H, W) in [-1, 1]."""
        return from_bytes(self.pixels)


@dataclass(frozen=True)
class RealImages:
    """Features of the reference, their statistics, and its noise limit; features and noise levels of the floor."""

    profile: Reference
    features: NDArray[np.float32]
    statistics: GaussianStatistics
    noise_limit: float | None
    floor: NDArray[np.float32]
    floor_noise: NDArray[np.float64]


def draw(
    denoiser: Denoiser, loaded: Loaded, config: DrawConfig, output: Output, what: str, reference: Samples
) -> Drawn:
    """Draw the profile's images from a model on any backend, decoded where its samples are latents.

    A conditional model draws image i under the conditioning of the i-th reference image, counted round.
    """

    def conditioning(places: Tensor) -> dict[str, Tensor]:
        return reference.conditioning((places + config.first_seed) % len(reference))

    guided = denoiser
    if config.guidance_scale != 1 and conditioning(torch.zeros(1, dtype=torch.int64)):
        guided = Guided(denoiser, config.guidance_scale, reference.unconditional)
    with output.progress(f"draw {what}", config.num_images) as progress:
        raw = sample(
            guided,
            stepper(loaded.scheduler, clip_sample=clips(loaded, config)),
            range(config.first_seed, config.first_seed + config.num_images),
            shape=loaded.sample_shape,
            num_inference_steps=config.num_inference_steps,
            batch_size=config.batch_size,
            conditioning=conditioning,
            on_images=progress.advance,
        )
        raw = decoder(loaded)(raw)
    # A student that diverges to NaN has failed, but its row should say so rather than stop the report of the others.
    finite = torch.nan_to_num(raw, nan=2 * DIVERGED, posinf=2 * DIVERGED, neginf=-2 * DIVERGED)
    diverged_share = float((finite.abs() > DIVERGED).float().mean())
    return Drawn(to_bytes(finite), denoiser.backend, diverged_share, raw.isfinite().flatten(1).all(dim=1).numpy())


def clips(loaded: Loaded, config: DrawConfig) -> bool:
    """Tell whether the sampler clips x0: where it is asked for and samples have the range of images."""
    return config.clip_sample and loaded.autoencoder is None and not is_flow(loaded.scheduler)


def real_images(
    reference: Images, training: Images, extractor: FeatureExtractor, num_images: int, output: Output
) -> RealImages:
    """Measure all reference images, and as many training images as models draw (the floor)."""
    count = min(num_images, len(training))
    with output.progress("features of the data", len(reference) + count) as progress:
        features, noise = _measured(reference, torch.arange(len(reference)), extractor, progress.advance)
        floor, floor_noise = _measured(training, evenly(len(training), count), extractor, progress.advance)
    profile = Reference(name=reference.name, sha256=reference.sha256, num_images=len(reference))
    return RealImages(profile, features, gaussian_statistics(features), noise_limit(noise), floor, floor_noise)


def profile(
    real: RealImages, extractor: FeatureExtractor, config: EvaluateConfig, teacher: Loaded, data: DataConfig
) -> QualityProfile:
    """Return everything a quality figure depends on beside the model."""
    return QualityProfile(
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        resize=extractor.resize,
        reference=real.profile,
        reference_kind=kind(data, "test", teacher),
        floor_kind=kind(data, "train", teacher),
        num_images=config.num_images,
        sampler=words(teacher.scheduler),
        num_inference_steps=config.num_inference_steps,
        clip_sample=clips(teacher, config),
        guidance_scale=config.guidance_scale,
        first_seed=config.first_seed,
        kid_subset_size=_kid_subset_size(config.num_images, real),
        kid_subsets=KID_SUBSETS,
        neighbours=NEIGHBOURS,
        noise_limit=real.noise_limit,
    )


def floor_row(real: RealImages) -> QualityRow:
    """Score training images as if a model had drawn them: the best that this count and extractor allow."""
    row = _row("floor", "", real.floor, real)
    row.noise_share = _noise_share(real.floor_noise, real)
    return row


def model_row(
    role: Literal["teacher", "pruned", "student"],
    drawn: Drawn,
    real: RealImages,
    extractor: FeatureExtractor,
    teacher: Drawn | None = None,
) -> QualityRow:
    """Score a model's images; against those of its teacher, of the same seeds, when there is one."""
    images = drawn.images()
    row = _row(role, drawn.backend, extractor(images), real)
    row.diverged_share = drawn.diverged_share
    row.noise_share = _noise_share(np.where(drawn.finite, noise_level(images), np.inf), real)
    if teacher is not None:
        expected = teacher.images()
        row.psnr_to_teacher = float(np.minimum(psnr(images, expected), IDENTICAL_PSNR).mean())
        if min(images.shape[2:]) >= WINDOW:
            row.ssim_to_teacher = float(ssim(images, expected).mean())
    return row


def _row(
    role: Literal["floor", "teacher", "pruned", "student"],
    backend: str,
    features: NDArray[np.float32],
    real: RealImages,
) -> QualityRow:
    count = len(features)
    kid_mean, kid_std = kid(real.features, features, subset_size=_kid_subset_size(count, real), num_subsets=KID_SUBSETS)
    # Precision and recall depend on the counts, so as many are taken of the one as of the other.
    equal = min(count, len(real.features))
    of_real, of_drawn = (values[evenly(len(values), equal).numpy()] for values in (real.features, features))
    precision, recall = precision_recall(of_real, of_drawn, k=NEIGHBOURS)
    return QualityRow(
        role=role,
        backend=backend,
        frechet_distance=frechet_distance(real.statistics, gaussian_statistics(features)),
        kid_mean=kid_mean,
        kid_std=kid_std,
        precision=precision,
        recall=recall,
    )


def _kid_subset_size(count: int, real: RealImages) -> int:
    """Return how many images of a model that drew `count` one estimate of KID looks at."""
    return min(KID_SUBSET_SIZE, count, len(real.features))


def _noise_share(levels: NDArray[np.float64], real: RealImages) -> float | None:
    return None if real.noise_limit is None else float((levels > real.noise_limit).mean())


def _measured(
    images: Images, indices: Tensor, extractor: FeatureExtractor, advance: Callable[[int], None]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the features (N, dim) and noise levels (N,) of the images at `indices` (N,)."""
    features, levels = [], []
    for chunk in indices.split(CHUNK):
        batch = images.batch(chunk)
        features.append(extractor(batch))
        levels.append(noise_level(batch))
        advance(len(chunk))
    return np.concatenate(features), np.concatenate(levels)
