"""Whether conditional models draw what they are asked for, over guidance scales: for students and teachers' cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edgediff.data.images import Source
from edgediff.diffusion.denoiser import Denoiser
from edgediff.errors import BadInputError
from edgediff.metrics.classifier import classifier
from edgediff.model_folder import Loaded
from edgediff.output import Output
from edgediff.quality import Drawn, draw
from edgediff.recipe import EvaluateConfig
from edgediff.results import ClassAccuracy, ClassAccuracyRow
from edgediff.run import Role
from edgediff.samples import Samples


@dataclass(frozen=True)
class Candidate:
    """A model, and the images that it drew at the profile's guidance scale, which need not be drawn again."""

    denoiser: Denoiser
    loaded: Loaded
    drawn: Drawn


def class_accuracy(
    candidates: Mapping[Role, Candidate],
    config: EvaluateConfig,
    reference: Samples,
    test: Source,
    training: Source,
    output: Output,
) -> ClassAccuracy | None:
    """Return the share of drawn images that a classifier of real ones takes for what was asked.

    Image i is asked to be of the class of the reference's image i, whether by its label or by its caption.

    Args: reference: what the candidates are told; test, training: the same data as images with classes.
    Returns: None for models that are told nothing, for no guidance scales, and for data whose classes are not known.
    Raises: BadInputError for classes that cannot be read, and what `classifier` raises.
    """
    if not config.guidance_scales or not reference.conditioning(torch.zeros(1, dtype=torch.int64)):
        return None
    if not (test.has_classes and training.has_classes):  # captions without classes: nothing can be counted
        return None
    count = min(config.num_class_images, config.num_images)
    asked = test.shown((torch.arange(count) + config.first_seed) % len(test))
    labels = test.class_labels(asked)
    known = classifier(training, output)
    rows = []
    for scale in config.guidance_scales if _can_be_guided(reference) else (1.0,):
        settings = config.model_copy(update={"guidance_scale": scale, "num_images": count})
        for role, candidate in candidates.items():
            drawn = candidate.drawn
            if scale != config.guidance_scale:
                what = f"{role}, guidance {scale:g}"
                drawn = draw(candidate.denoiser, candidate.loaded, settings, output, what, reference)
            accuracy = known.accuracy(drawn.batches(count), labels)
            rows.append(ClassAccuracyRow(role=role, guidance_scale=scale, class_accuracy=accuracy))
    return ClassAccuracy(
        classifier_sha256=known.sha256, num_images=count, real=known.accuracy_on(test), num_real=len(test), rows=rows
    )


def _can_be_guided(reference: Samples) -> bool:
    """Tell whether the models know what stands for no conditioning; some class-conditional ones do not."""
    try:
        reference.unconditional(1)
    except BadInputError:
        return False
    return True
