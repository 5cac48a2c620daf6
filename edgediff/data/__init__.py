"""Images to train on and to compare with."""

from __future__ import annotations

from pathlib import Path

from edgediff.data import fashion_mnist, folder
from edgediff.data.images import Images, Source
from edgediff.data.splits import Split
from edgediff.errors import BadInputError, nearest
from edgediff.output import Output
from edgediff.recipe import DataConfig

__all__ = ["Images", "Source", "drawn_by", "load"]

KNOWN = ("fashion-mnist", "fashion-mnist-20k")  # the second: always the packaged subset, the same on every machine


def load(config: DataConfig, split: Split, *, shape: tuple[int, int, int], output: Output | None = None) -> Source:
    """Load the images of a split for a model whose samples are of `shape` (C, H, W).

    Args: output: shows the reading of large sources and tells of damaged images; None: as a command does by default.
    Raises: BadInputError for an unknown name, a folder without images, or a known set of another shape; what
    `folder.load` raises.
    """
    if config.name in KNOWN:
        named = Path(config.folder) if config.folder else None
        place = fashion_mnist.packaged_folder() if config.name == "fashion-mnist-20k" else named
        images = fashion_mnist.load(split, place)
        if shape == (1, fashion_mnist.FRAMED, fashion_mnist.FRAMED):
            images = fashion_mnist.framed(images)
        if images.shape != shape:
            raise BadInputError(
                f"images of {config.name} are {_sized(images.shape)}, samples of the model are {_sized(shape)}",
                "name a folder of your own images with `data.name=FOLDER`, they are resized to the model",
            )
        return images
    root = Path(config.name)
    if not root.is_dir():
        raise BadInputError(
            f"no data set and no folder of images: {config.name}",
            f"{nearest(config.name, KNOWN)}; folders are looked for from where the command is run: {Path.cwd()}",
        )
    return folder.load(root, split, shape, output or Output())


def drawn_by(config: DataConfig, split: Split) -> str | None:
    """Return the hash of the model that drew the images of a split; None for real ones, as far as is known."""
    return None if config.name in KNOWN else folder.drawn_by(Path(config.name), split)


def _sized(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
