"""How images of a model are drawn and scored: one profile, for students in `evaluate` and for teachers' cards alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgediff.data.images import Images, from_bytes, to_bytes
from edgediff.data.order import evenly
from edgediff.diffusion.denoiser import Denoiser
from edgediff.diffusion.guidance import Guided
from edgediff.diffusion.sampler import sample, stepper, uneven, words
from edgediff.diffusion.schedule import is_flow
from edgediff.metrics.checks import at_once
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
from edgediff.samples import Samples, decoder, image_shape, kind

KID_SUBSET_SIZE, KID_SUBSETS = 1000, 100
NEIGHBOURS = FEWEST_SCORED - 1  # of precision and recall: 3, as Kynkaanniemi et al. 2019 have it
DIVERGED = 1.5  # abs(x) beyond which a pixel of an image in [-1, 1] is no rounding of one
IDENTICAL_PSNR = 100.0  # dB; stands for infinity, which JSON cannot hold and a mean cannot survive


@dataclass(frozen=True)
class Drawn:
    """Images of one model, as they would be saved: (N, C, H, W) uint8, and how the raw ones were out of range.

    `diverged_share` is one of pixels; `finite` (N,) says which images hold neither NaN nor infinity.
    """

    pixels: NDArray[np.uint8]
    backend: str
    diverged_share: float
    finite: NDArray[np.bool_]

    def batches(self, count: int | None = None) -> Iterator[Tensor]:
        """Yield the first `count` images, or all, as float32 (n, C, H, W) in [-1, 1], as many as are scored at once."""
        for first in range(0, len(self.pixels[:count]), size := at_once(self.pixels.shape)):
            yield from_bytes(self.pixels[:count][first : first + size])


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
    guided = denoiser
    if config.guidance_scale != 1 and reference.conditioning(torch.zeros(1, dtype=torch.int64)):
        guided = Guided(denoiser, config.guidance_scale, reference.unconditional)
    scheduler, decode = stepper(loaded.scheduler, clip_sample=clips(loaded, config)), decoder(loaded)
    pixels = np.empty((config.num_images, *image_shape(loaded)), np.uint8)
    finite, diverged = np.empty(config.num_images, np.bool_), 0
    with output.progress(f"draw {what}", config.num_images) as progress:
        for start in range(0, config.num_images, config.batch_size):
            batch = slice(start, min(start + config.batch_size, config.num_images))
            seeds = range(config.first_seed + batch.start, config.first_seed + batch.stop)

            def conditioning(places: Tensor, first: int = seeds.start) -> dict[str, Tensor]:
                return reference.conditioning((places + first) % len(reference))

            raw = decode(
                sample(
                    guided,
                    scheduler,
                    seeds,
                    shape=loaded.sample_shape,
                    num_inference_steps=config.num_inference_steps,
                    batch_size=config.batch_size,
                    conditioning=conditioning,
                )
            )
            finite[batch] = raw.isfinite().flatten(1).all(dim=1).numpy()
            # A student that diverges to NaN has failed, but its row should say so rather than stop the others' report.
            raw = torch.nan_to_num(raw, nan=2 * DIVERGED, posinf=2 * DIVERGED, neginf=-2 * DIVERGED)
            diverged += int((raw.abs() > DIVERGED).sum())
            pixels[batch] = to_bytes(raw)
            progress.advance(len(seeds))
    return Drawn(pixels, denoiser.backend, diverged / pixels.size, finite)


def scored_with(config: EvaluateConfig, scheduler: Any) -> dict[str, Any]:
    """Return what of a recipe scores hang on, by which they are known to be up to date."""
    steps = config.num_inference_steps
    sampler = {"sampler": words(scheduler, steps)} if uneven(scheduler, steps) else {}
    return {"evaluate": config.model_dump(mode="json"), **sampler}


def clips(loaded: Loaded, config: DrawConfig) -> bool:
    """Tell whether the sampler clips x0: where it is asked for and samples have the range of images."""
    return config.clip_sample and loaded.autoencoder is None and not is_flow(loaded.scheduler)


def real_images(
    reference: Images, training: Images, extractor: FeatureExtractor, num_images: int, output: Output
) -> RealImages:
    """Measure all reference images, and as many training images as models draw (the floor)."""
    count = min(num_images, len(training))
    with output.progress("features of the data", len(reference) + count) as progress:

        def batches(images: Images, indices: Tensor) -> Iterator[Tensor]:
            for chunk in indices.split(at_once(images.shape)):
                yield images.batch(chunk)
                progress.advance(len(chunk))

        features, noise = _measured(batches(reference, torch.arange(len(reference))), extractor)
        floor, floor_noise = _measured(batches(training, evenly(len(training), count)), extractor)
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
        sampler=words(teacher.scheduler, config.num_inference_steps),
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
    features, noise = _measured(drawn.batches(), extractor)
    row = _row(role, drawn.backend, features, real)
    row.diverged_share = drawn.diverged_share
    row.noise_share = _noise_share(np.where(drawn.finite, noise, np.inf), real)
    if teacher is not None:
        row.psnr_to_teacher = float(np.minimum(_paired(psnr, drawn, teacher), IDENTICAL_PSNR).mean())
        if min(drawn.pixels.shape[2:]) >= WINDOW:
            row.ssim_to_teacher = float(_paired(ssim, drawn, teacher).mean())
    return row


def _paired(
    measure: Callable[[Tensor, Tensor], NDArray[np.float64]], drawn: Drawn, teacher: Drawn
) -> NDArray[np.float64]:
    """Return a measure (N,) of every image and the teacher's of the same seed."""
    pairs = zip(drawn.batches(), teacher.batches(), strict=True)
    return np.concatenate([measure(images, expected) for images, expected in pairs])


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
    """Return how many images one estimate of KID looks at, of a model that drew `count`.

    No more than half of the larger side: were both whole, all estimates would be one, and its deviation 0.
    """
    smaller, larger = sorted((count, len(real.features)))
    return min(KID_SUBSET_SIZE, smaller, larger // 2)


def _noise_share(levels: NDArray[np.float64], real: RealImages) -> float | None:
    return None if real.noise_limit is None else float((levels > real.noise_limit).mean())


def _measured(
    batches: Iterable[Tensor], extractor: FeatureExtractor
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the features (N, dim) and noise levels (N,) of images in batches (n, C, H, W)."""
    features, levels = [], []
    for batch in batches:
        features.append(extractor(batch))
        levels.append(noise_level(batch))
    return np.concatenate(features), np.concatenate(levels)
