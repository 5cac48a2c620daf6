"""A folder of images in whatever form it holds them: loose files, WebDataset tars, or Arrow and Parquet tables."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from edgediff.artifacts import read_object
from edgediff.data import arrow, decoding, generated, splits, walk
from edgediff.data.arrow import ArrowImages
from edgediff.data.encoded import Encoded, EncodedImages
from edgediff.data.image_files import ImageFiles
from edgediff.data.splits import Split
from edgediff.data.tars import TarMembers
from edgediff.errors import BadInputError, nearest
from edgediff.output import Output

# The first that is found counts: tables often hold what is known about the images in the other two, and no images.
FORMS = {"tars": {".tar"}, "image files": decoding.SUFFIXES, "tables": arrow.SUFFIXES}


def load(folder: Path, split: Split, shape: tuple[int, int, int], output: Output) -> EncodedImages:
    """Find the images of a split.

    They are those of the sub-folders, of the files or of the saved data set's splits that are called `train` and
    `test` (or `validation`); where nothing is, or all is called `train`, nine and one in ten of all, by what does not
    change when images are added: the names of files and of tars' members, the numbers of tables' rows.

    Args: shape: (C, H, W) to convert to, C = 1 or 3.
    Raises: BadInputError when there is no image or more than one form of them, or the model's samples are no images;
    CorruptArtifactError for a damaged tar or table; MissingExtraError for tables without pyarrow.
    """
    if shape[0] not in decoding.MODES:
        raise BadInputError(
            f"model samples have {shape[0]} channels, images have 1 or 3", "latent models need a cache of latents"
        )
    root, divided = _part(folder, split)
    form, names = _form(root)
    if not divided and form != "image files":  # names of those may speak of anything
        part = splits.part({splits.named_part(name) for name in names}, split)
        if part:
            names, divided = [name for name in names if splits.named_part(name) == part], True
    encoded = _encoded(form, folder, root, names, None if divided else split, output)
    if not len(encoded):
        raise BadInputError(
            f"no image of the folder falls to the split {split}: `{root}`",
            "divide them into sub-folders `train` and `test`, or add images",
        )
    return EncodedImages(f"{folder.resolve().name}/{split}", encoded, shape, output.say)


def drawn_by(folder: Path, split: Split) -> str | None:
    """Return the hash of the model that drew the images of a split; None for real ones, as far as the folder says."""
    return generated.drawn_by(_part(folder, split)[0])


def _part(folder: Path, split: Split) -> tuple[Path, bool]:
    """Return the folder that holds the split, and whether it holds nothing else."""
    saved = folder / "dataset_dict.json"  # beside the splits that `DatasetDict.save_to_disk` writes
    names = read_object(saved).get("splits", []) if saved.is_file() else None
    here = _parts(folder) if names is None else {name: name for name in names}
    part = splits.part(here, split)
    if part:
        return folder / here[part], True
    if names is None:
        return _without_wrapping(folder), False
    if "train" in names or len(names) == 1:
        return folder / ("train" if "train" in names else names[0]), False
    raise BadInputError(f"data set has no split `{split}`: `{folder}`", nearest(split, names))


def _parts(folder: Path) -> dict[str, str]:
    """Return the sub-folders called like a part, `Train` too: the part → the folder's name."""
    if not folder.is_dir():
        return {}
    found = sorted(entry.name for entry in walk.entries(folder) if entry.is_dir())
    return {name.lower(): name for name in found if name.lower() in splits.KNOWN_PARTS}


def _without_wrapping(folder: Path) -> Path:
    """Return the folder called `train` where it holds all there is, so that it is no class; else the folder itself."""
    holding = [entry.name for entry in walk.entries(folder) if _holds_images(entry)]
    return folder / holding[0] if len(holding) == 1 and holding[0].lower() in splits.PARTS["train"] else folder


def _holds_images(entry: Path | os.DirEntry[str]) -> bool:
    """Tell whether a file, or one somewhere in a folder, is of a kind that images come in."""
    known = {suffix for suffixes in FORMS.values() for suffix in suffixes}
    names = walk.files(Path(entry)) if entry.is_dir() else [entry.name]
    return any(PurePosixPath(name).suffix.lower() in known for name in names)


def _form(root: Path) -> tuple[str, list[str]]:
    """Return in which form a folder holds images, and its files of that form in order."""
    found: dict[str, list[str]] = {form: [] for form in FORMS}
    for name in walk.files(root):
        suffix = PurePosixPath(name).suffix.lower()
        for form, suffixes in FORMS.items():
            if suffix in suffixes:
                found[form].append(name)
    for names in found.values():
        names.sort(key=lambda name: name.split("/"))
    if found["image files"]:
        tables = [name for name in found["tables"] if arrow.holds_images(root / name)]
        for form, names in (("tars", found["tars"]), ("tables of images", tables)):
            if names:
                raise BadInputError(
                    f"folder holds both {form} and loose images, such as `{names[0]}` and "
                    f"`{found['image files'][0]}`: `{root}`",
                    "keep one of them",
                )
    for form, names in found.items():
        if names:
            return form, names
    known = ", ".join(sorted(suffix for suffixes in FORMS.values() for suffix in suffixes))
    raise BadInputError(f"no images: `{root}`", f"known kinds: {known}")


def _encoded(form: str, folder: Path, root: Path, names: list[str], share: Split | None, output: Output) -> Encoded:
    if form == "tars":
        return TarMembers(root, tuple(names), share, output)
    if form == "tables":
        return ArrowImages(root, tuple(names), share, output)
    chosen = tuple(name for name in names if not share or splits.is_test(name) == (share == "test"))
    return ImageFiles(root, chosen, output, roots=tuple(_part(folder, part)[0] for part in splits.PARTS), top=folder)
