"""What a teacher is asked to draw: the class or the caption of every image, by its seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgediff import data
from edgediff.artifacts import digest
from edgediff.backends import best_device
from edgediff.data import captions, metadata
from edgediff.data.conditioned import whole_frame
from edgediff.data.images import Source
from edgediff.encoding import text
from edgediff.encoding.text import TextEncoders
from edgediff.errors import BadInputError
from edgediff.model_folder import Loaded
from edgediff.output import Output
from edgediff.recipe import DataConfig, GenerateConfig
from edgediff.samples import CLASSES, image_shape

Known = int | str  # a class, or a caption
Told = dict[str, Tensor]


@dataclass(frozen=True)
class Asked:
    """What a teacher is told of the images that it draws, one after the other and round again.

    Attributes:
        column: what the table of an image folder calls it.
        values: at least one; the image of seed s is drawn under value s modulo their number.
        encode: from values to further arguments of the model's forward, (B, ...) each.
        unconditional: from B to the arguments that stand for no conditioning.
        sha256: digest of all that the arguments depend on.
    """

    column: str
    values: Sequence[Known]
    encode: Callable[[Sequence[Known]], Told]
    unconditional: Callable[[int], Told]
    sha256: str

    def of(self, seed: int) -> Known:
        """Return what the image of a seed is to show."""
        return self.values[seed % len(self.values)]

    def conditioning(self, seeds: Sequence[int]) -> Told:
        """Return further arguments of the model's forward, (B, ...) each, for the images of the seeds."""
        return self.encode([self.of(seed) for seed in seeds])


def asked(config: GenerateConfig, loaded: Loaded, folder: Path, output: Output) -> Asked | None:
    """Find what the config asks a teacher for, which was loaded from `folder`; None of one that is told nothing.

    Raises: BadInputError for what the teacher cannot be asked for, for captions that are missing, and for guidance of
    a model that does not know what stands for no conditioning.
    """
    needed = loaded.family.conditioning_names(loaded.model.config)
    taken = ("data", "classes" if needed == CLASSES else "captions") if needed else ()
    for key in ("data", "classes", "captions"):
        if getattr(config, key) and key not in taken:
            raise BadInputError(f"{key}: the teacher is told {', '.join(needed) or 'nothing'}", f"leave `{key}` out")
    if not needed:
        return None
    found = _classes(config, loaded, output) if needed == CLASSES else _captions(config, loaded, folder, output)
    if config.guidance_scale != 1:
        found.unconditional(1)
    return found


def _classes(config: GenerateConfig, loaded: Loaded, output: Output) -> Asked:
    """Ask for the classes that are named, for those of data, or for all that the model knows."""
    family, model = loaded.family, loaded.model.config
    known = family.classes(model)
    if config.data:
        found = _source(config.data, loaded, output)
        labels = found.class_labels(torch.arange(len(found))).tolist()
    else:
        labels = list(config.classes or range(known))
    unknown = [label for label in labels if not 0 <= label < known]
    if unknown:
        raise BadInputError(f"the teacher knows no class {unknown[0]}", f"its classes are 0 to {known - 1}")
    return Asked(
        metadata.LABEL,
        labels,
        lambda values: {CLASSES[0]: torch.tensor(values)},
        lambda count: family.unconditional(model, count),
        digest(labels),
    )


def _captions(config: GenerateConfig, loaded: Loaded, folder: Path, output: Output) -> Asked:
    """Ask for the captions of a file or of data, without empty ones, under which a model draws what it likes."""
    if config.captions:
        given = captions.lines(Path(config.captions))
    elif config.data:
        found = _source(config.data, loaded, output)
        given = found.captions(torch.arange(len(found)))
    else:
        given = []
    wanted = [caption for caption in given if caption]
    if not wanted:
        raise BadInputError(
            "the teacher draws what captions ask for, and there are none",
            "give a text file with one a line, `captions=FILE`, or data that has some, `data.name=NAME`",
        )
    encoders = TextEncoders(folder, best_device())
    nothing, shape = encoders.unconditional(), image_shape(loaded)

    def encode(values: Sequence[Known]) -> Told:
        frame = {"time_ids": whole_frame(shape, len(values))} if encoders.use.framing else {}
        return {**encoders([str(value) for value in values]), **frame}

    return Asked(
        captions.COLUMNS[0],
        wanted,
        encode,
        lambda count: {name: row.expand(count, *row.shape[1:]) for name, row in nothing.items()},
        digest([wanted, text.fingerprint(folder)]),
    )


def _source(config: DataConfig, loaded: Loaded, output: Output) -> Source:
    """Return data that says what to ask for; its images are not looked at."""
    return data.load(config, "train", shape=image_shape(loaded), output=output)
