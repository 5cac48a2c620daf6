"""What a model learns from and is scored against: images or their latents, each with what the model is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgediff import data
from edgediff.artifacts import digest
from edgediff.backends import best_device
from edgediff.data import captions
from edgediff.data.conditioned import ClassLabels, Conditioned, Conditions
from edgediff.data.images import Images, Source
from edgediff.data.splits import Split
from edgediff.encoding import latents, prompts
from edgediff.encoding.images import LatentImages
from edgediff.encoding.learned_text import LearnedText
from edgediff.errors import BadInputError
from edgediff.model_folder import Loaded
from edgediff.output import Output
from edgediff.recipe import FEWEST_SCORED, DataConfig

CLASSES = ("class_labels",)
MOST_AT_ONCE, PIXELS_AT_ONCE = 64, 2**20  # of the encoder, whose activations are many times the images


class Samples:
    """`Images` in a model's own sample space, that also know what stands for no conditioning.

    `others`: conditions that random conditioning chooses from, which need not have images here; None without it.
    """

    def __init__(
        self, images: Images, unconditional: Callable[[int], dict[str, Tensor]], others: Conditions | None = None
    ) -> None:
        self.images, self.unconditional, self.others = images, unconditional, others
        self.name, self.shape = images.name, images.shape
        self.sha256 = images.sha256 if others is None else digest([images.sha256, others.sha256])

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.images)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the samples (B, C, H, W) float32 of `indices` (B,); of latents the modes."""
        return self.images.batch(indices)

    def drawn(self, indices: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return samples (B, C, H, W) float32 to learn from: of latents, whose autoencoder tells a distribution, one
        that a seed decides, as published trainings do; pixels are what they are.
        """
        if isinstance(self.images, LatentImages):
            return self.images.drawn(indices, seeds)
        return self.images.batch(indices)

    def conditioning(self, indices: Tensor) -> dict[str, Tensor]:
        """Return further arguments of the model's forward, (B, ...) each."""
        return self.images.conditioning(indices)


def image_shape(loaded: Loaded) -> tuple[int, int, int]:
    """Return (C, H, W) of the images that a model makes, decoded where its samples are latents."""
    if loaded.autoencoder is None:
        return loaded.sample_shape
    return latents.image_shape(loaded.autoencoder.parent, loaded.sample_shape)


def decoder(loaded: Loaded) -> Callable[[Tensor], Tensor]:
    """Return what makes images (N, C, H, W) of a model's samples: its pipeline's autoencoder, or nothing at all."""
    if loaded.autoencoder is None:
        return lambda samples: samples
    return latents.Decoder(loaded.autoencoder.parent, device=best_device(), batch_size=_at_once(image_shape(loaded)))


def scored(config: DataConfig, split: Split, loaded: Loaded, encoded: Path, output: Output) -> Samples:
    """Load the images of a split as people see them, with what the model is told of them.

    Args: encoded: folder for text embeddings, which are made once.
    Raises: BadInputError for data that does not fit the model, or does not say what it needs to be told.
    """
    found = data.load(config, split, shape=image_shape(loaded), output=output)
    conditions, nothing = _told(found, split, loaded, encoded, output)
    images = Conditioned(found, conditions) if conditions else found
    return Samples(images, nothing, _others(config, split, conditions, loaded, encoded, output))


def learned(
    config: DataConfig, split: Split, loaded: Loaded, encoded: Path, output: Output, text: LearnedText | None = None
) -> Samples:
    """Load the samples of a split in the model's own space: latents, made once, where its pipeline has an autoencoder.

    Args: encoded: folder for latents and text embeddings.
          text: who turns captions into token ids, while the pipeline's text encoder is trained too.
    Raises: as `scored`.
    """
    if loaded.autoencoder is None:
        return scored(config, split, loaded, encoded, output)
    found = data.load(config, split, shape=image_shape(loaded), output=output)
    conditions, nothing = _told(found, split, loaded, encoded, output, text)
    kept = latents.encode(
        encoded / f"latents-{split}",
        found,
        loaded.autoencoder.parent,
        device=best_device(),
        batch_size=_at_once(found.shape),
        output=output,
    )
    return Samples(LatentImages(kept, conditions), nothing, _others(config, split, conditions, loaded, encoded, output))


def check(config: DataConfig, loaded: Loaded, output: Output) -> None:
    """Find out, before any work, whether there are images of both splits and what the model needs to know of them.

    Raises: BadInputError.
    """
    needed = loaded.family.conditioning_names(loaded.model.config)
    for split in ("train", "test"):
        found = data.load(config, split, shape=image_shape(loaded), output=output)
        if len(found) < FEWEST_SCORED:
            raise BadInputError(
                f"too few images to score by, {len(found)} in the {split} split of `{config.name}`",
                f"at least {FEWEST_SCORED} are needed, and hundreds for figures to trust",
            )
        if needed == CLASSES:
            _labels(found, loaded)
        elif needed:
            found.captions(torch.arange(len(found)))
    if config.random_captions is not None:
        if not needed or needed == CLASSES:
            raise BadInputError("data.random_captions: the teacher is told no captions", "leave it out")
        random_captions(config.random_captions)


def kind(config: DataConfig, split: Split, teacher: Loaded) -> str:
    """Say what the images of a split are: real ones, or drawn by a model, as in distillation without a data set."""
    drawer = data.drawn_by(config, split)
    if drawer is None:
        return "real images"
    return f"images drawn by {'the teacher' if drawer == teacher.sha256 else 'another model'}"


def _at_once(shape: tuple[int, int, int]) -> int:
    """Return how many images of a shape (C, H, W) the autoencoder takes at once."""
    _, height, width = shape
    return max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // (height * width)))


def _others(
    config: DataConfig, split: Split, own: Conditions | None, loaded: Loaded, encoded: Path, output: Output
) -> Conditions | None:
    """Return what random conditioning chooses from, where samples of this split are to be told something random."""
    if own is None or split != "train" or not config.random_conditioning:
        return None
    if loaded.family.conditioning_names(loaded.model.config) == CLASSES:
        return ClassLabels(torch.arange(loaded.family.classes(loaded.model.config)))
    if config.random_captions is None or loaded.folder is None:
        return own
    wanted = random_captions(config.random_captions)
    folder = encoded / f"prompts-{digest(wanted)[:16]}"  # runs of other captions may share what is encoded
    return prompts.encode(folder, wanted, loaded.folder, device=best_device(), output=output)


def random_captions(file: str) -> list[str]:
    """Return the captions of a file, one a line.

    Raises: BadInputError where there are none.
    """
    found = captions.lines(Path(file))
    if not found:
        raise BadInputError(f"there are no captions in the file: `{file}`", "give a text file with one a line")
    return found


def _labels(found: Source, loaded: Loaded) -> ClassLabels:
    """Return the classes of all images.

    Raises: BadInputError when one is not known, or is none that the model knows.
    """
    told, classes = ClassLabels.of(found), loaded.family.classes(loaded.model.config)
    strange = (told.labels < 0) | (told.labels >= classes)
    if strange.any():
        raise BadInputError(
            f"the model knows classes 0 to {classes - 1}, and {int(strange.sum()):,} of {len(found):,} images of "
            f"{found.name} are of others, such as {int(told.labels[strange][0])}",
            "choose the data set that the model was trained with",
        )
    return told


def _told(
    found: Source, split: Split, loaded: Loaded, encoded: Path, output: Output, text: LearnedText | None = None
) -> tuple[Conditions | None, Callable[[int], dict[str, Tensor]]]:
    """Return what the model is told of the images, and what it is told where there is nothing to tell."""
    config = loaded.model.config
    needed = loaded.family.conditioning_names(config)
    if not needed:
        return None, lambda count: {}
    if needed == CLASSES:
        return _labels(found, loaded), lambda count: loaded.family.unconditional(config, count)
    shown = found.captions(torch.arange(len(found)))
    if text is not None:
        tokens = text.tokens(shown)
        return tokens, tokens.unconditional
    if loaded.folder is None:
        raise BadInputError("a model that is told captions needs the text encoders of its pipeline")
    kept = prompts.encode(encoded / f"prompts-{split}", shown, loaded.folder, device=best_device(), output=output)
    return kept, kept.unconditional
