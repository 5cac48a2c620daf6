"""Arrow and Parquet tables with a column of images: what Hugging Face `datasets` leaves on disk.

Arrow files are memory-mapped. Parquet packs hundreds of rows together, so that reading one means unpacking them all:
its image column is copied once into an Arrow file in the user's cache, as `datasets` itself does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgediff.artifacts import atomic_file, read_object
from edgediff.data import captions
from edgediff.data.splits import Split, held_out
from edgediff.data.user_cache import kept
from edgediff.errors import BadInputError, CorruptArtifactError, MissingExtraError
from edgediff.output import Output

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = {".arrow", ".parquet"}
COPY = "images-1.arrow"  # the number is the format's
COPIED_ROWS = 100  # to a record batch, as `datasets` does for images
END_BYTES = 65536  # of a file's beginning and of its end, where Parquet has its index


class ArrowImages:
    """The images in tables by index: files in the order of their names, rows in the order of the file."""

    def __init__(self, root: Path, names: tuple[str, ...], share: Split | None, output: Output) -> None:
        """Open the tables `names` under `root`, copying those in Parquet that have not been copied yet.

        Args: share: the split to keep of all rows, by their number; None keeps everything.
        Raises: BadInputError for no image column or several, and when a copy has no room; CorruptArtifactError for a
        damaged file; MissingExtraError without pyarrow.
        """
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("pyarrow", "data", "reading Arrow and Parquet files") from error
        self.root, self.share = root, share
        self.names = _of_data_sets(root, names)
        columns = [_image_column(path) for path in _without_parquet(self._paths, output)]
        self._chunks = [(chunk.field("bytes"), chunk.field("path")) for column in columns for chunk in column.chunks]
        self._starts = np.cumsum([0, *(len(encoded) for encoded, _ in self._chunks)])
        count = int(self._starts[-1])
        self._rows = np.flatnonzero(held_out(count) == (share == "test")) if share else np.arange(count)

    @cached_property
    def sha256(self) -> str:
        """Digest of the files' names and sizes and of 64 KiB at both ends of each, where Parquet has its index.

        It notices added, removed and rewritten rows, and not bytes changed in place in the middle of a file.
        """
        digest = hashlib.sha256(f"{self.share}\0".encode())
        for name in self.names:
            with (self.root / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(f"{name}\0{size}\0".encode())
                digest.update(file.read(END_BYTES))
                file.seek(max(0, size - END_BYTES))
                digest.update(file.read(END_BYTES))
        return digest.hexdigest()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def read(self, index: int) -> bytes:
        """Return the encoded image of a row, from the file it names where the row holds none; empty for a null.

        Raises: OSError when that file cannot be read.
        """
        row = int(self._rows[index])
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        place = row - int(self._starts[chunk])
        encoded, paths = self._chunks[chunk]
        data, path = encoded[place].as_py(), paths[place].as_py()
        if data is None and path:
            return (self.root / path).read_bytes()
        return data or b""

    def where(self, index: int) -> str:
        """Return the folder and the number of the row, counted over its files."""
        return f"{self.root}: row {int(self._rows[index])}"

    def label(self, index: int) -> int | None:
        """Return the number in the column of class labels; None for none, which `datasets` writes as null or -1.

        Raises: BadInputError for several such columns; CorruptArtifactError for a damaged file.
        """
        label = None if self._labels is None else self._labels[int(self._rows[index])].as_py()
        return None if label == -1 else label

    def caption(self, index: int) -> str | None:
        """Return the text in the column of captions, else the name of the row's class; None for neither.

        Raises: BadInputError for several such columns, or files that name their classes differently;
        CorruptArtifactError for a damaged file.
        """
        if self._captions is not None:
            return self._captions[int(self._rows[index])].as_py()
        label = self.label(index) if self._classes else None
        return None if label is None else self._classes[label]

    @cached_property
    def _labels(self) -> pa.ChunkedArray | None:
        return self._column(_label_column)

    @cached_property
    def _captions(self) -> pa.ChunkedArray | None:
        return self._column(_caption_column)

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        """Names of the classes, as `datasets` notes them in the schema; empty where it does not."""
        noted: set[tuple[str, ...]] = set()
        for path in self._paths:
            schema = _schema(path)
            label = _label_column(schema, path)
            noted.add(tuple(_features(schema).get(label, {}).get("names", ())))
        if len(noted) > 1:
            raise BadInputError(
                f"tables name their classes differently: `{self.root}`",
                "write them again with one feature `datasets.ClassLabel` for all",
            )
        return noted.pop()

    def _column(self, choose: Callable[[pa.Schema, Path], str | None]) -> pa.ChunkedArray | None:
        """Return the column that `choose` names in every file, over the rows of all; None where a file has none.

        What is known of images is small beside them, so of Parquet it is read whole.
        """
        import pyarrow as pa

        columns = []
        for path in self._paths:
            name = choose(_schema(path), path)
            if name is None:
                return None
            columns.append(_read_column(path, name))
        kind = columns[0].type
        return pa.chunked_array([chunk for column in columns for chunk in column.cast(kind).chunks], kind)

    @property
    def _paths(self) -> list[Path]:
        return [self.root / name for name in self.names]


def _of_data_sets(root: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files that are parts of data sets, and not what `datasets` keeps beside them.

    A saved data set lists its files, and may lie over an older one with more of them; others have results of `map` and
    the like in files that begin with `cache-`.
    """
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, []).append(file)
    parts: list[str] = []
    for folder, files in folders.items():
        state = root / folder / "state.json"
        if state.is_file():
            listed = [file["filename"] for file in read_object(state)["_data_files"]]
            for file in listed:
                if file not in files:
                    raise CorruptArtifactError(
                        f"saved data set lacks a file: `{state.with_name(file)}`", "copy it again"
                    )
            files = listed
        parts += [f"{folder}/{file}".lstrip("/") for file in files if not file.startswith("cache-")]
    return tuple(parts)


def holds_images(path: Path) -> bool:
    """Tell whether a table has a column of images, as far as it can be read, which takes pyarrow."""
    try:
        return bool(_image_columns(_schema(path)))
    except (ImportError, CorruptArtifactError):
        return False


def _image_column(path: Path) -> pa.ChunkedArray:
    """Return the column of images of an Arrow file."""
    table = _mapped(path)
    return table.column(_column_name(table.schema, path))


def _mapped(path: Path) -> pa.Table:
    """Map an Arrow file, in the streaming format or the other."""
    import pyarrow as pa

    with _whole(path):
        source = pa.memory_map(str(path))
        opened = pa.ipc.open_file if source.read(6) == b"ARROW1" else pa.ipc.open_stream
        source.seek(0)
        return opened(source).read_all()


def _schema(path: Path) -> pa.Schema:
    from pyarrow import parquet

    with _whole(path):
        return parquet.read_schema(path) if path.suffix == ".parquet" else _mapped(path).schema


def _read_column(path: Path, name: str) -> pa.ChunkedArray:
    from pyarrow import parquet

    with _whole(path):
        # A file of its own, whatever its folder's name may say of a partition.
        table = parquet.ParquetFile(path).read(columns=[name]) if path.suffix == ".parquet" else _mapped(path)
        return table.column(name)


def _features(schema: pa.Schema) -> dict[str | None, dict[str, Any]]:
    """Return what `datasets` notes in a schema of each column that is no list, by its name."""
    noted = json.loads((schema.metadata or {}).get(b"huggingface", "{}")).get("info", {}).get("features", {})
    return {name: feature for name, feature in noted.items() if isinstance(feature, dict)}


def _column_name(schema: pa.Schema, path: Path) -> str:
    """Return the name of the one column that holds images, by the features that `datasets` notes in the schema.

    Without such a note a column of encoded images is one of {bytes, path}.
    """
    found = _image_columns(schema)
    if len(found) != 1:
        columns = ", ".join(f"`{name}`" for name in (found or schema.names))
        problem = f"several columns of images ({columns})" if found else f"no column of images (columns: {columns})"
        raise BadInputError(
            f"{problem}: `{path}`",
            "write the folder again with one column of the feature `datasets.Image`, for example by "
            "`dataset.select_columns(...)` or `dataset.cast_column(...)`",
        )
    return found[0]


def _image_columns(schema: pa.Schema) -> list[str]:
    noted = _features(schema)
    return [
        field.name
        for field in schema
        if noted.get(field.name, {"_type": "Image"}).get("_type") == "Image" and _is_encoded(field.type)
    ]


def _caption_column(schema: pa.Schema, path: Path) -> str | None:
    """Return the name of the column that holds captions, or None for none."""
    import pyarrow as pa

    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    return captions.column(texts, str(path))


def _label_column(schema: pa.Schema, path: Path) -> str | None:
    """Return the name of the column that holds class labels: numbers that `datasets` notes as such, or called `label`.

    Raises: BadInputError for several.
    """
    import pyarrow as pa

    noted = _features(schema)
    found = [
        field.name
        for field in schema
        if pa.types.is_integer(field.type)
        and (field.name == "label" or noted.get(field.name, {}).get("_type") == "ClassLabel")
    ]
    if len(found) > 1:
        columns = ", ".join(f"`{name}`" for name in found)
        raise BadInputError(
            f"several columns of class labels ({columns}): `{path}`",
            "write the folder again with one of them, for example by `dataset.remove_columns(...)`",
        )
    return found[0] if found else None


def _is_encoded(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _without_parquet(paths: list[Path], output: Output) -> list[Path]:
    """Return the files with an Arrow copy in the place of each in Parquet."""
    places = [kept(path, COPY) if path.suffix == ".parquet" else path for path in paths]
    missing = [(path, place) for path, place in zip(paths, places, strict=True) if not place.exists()]
    if missing:
        _check_room([path for path, _ in missing], missing[0][1])
        with output.progress("copy images out of Parquet", len(missing)) as progress:
            for path, place in missing:
                _copy(path, place)
                progress.advance()
    return places


def _check_room(paths: list[Path], place: Path) -> None:
    """Refuse a copy that cannot fit, before the hours it may take; encoded images are as large in either format."""
    cache = next(parent for parent in place.parents if parent.exists())
    needed, free = sum(path.stat().st_size for path in paths), shutil.disk_usage(cache).free
    if needed > free:
        raise BadInputError(
            f"images in Parquet are copied once, and {needed / 1e9:.1f} GB have no room in `{cache}`: "
            f"{free / 1e9:.1f} GB free",
            "name another place in XDG_CACHE_HOME, or save the data set with `save_to_disk`, which needs no copy",
        )


def _copy(path: Path, place: Path) -> None:
    """Copy the images of a Parquet file into an Arrow file."""
    import pyarrow as pa
    from pyarrow import parquet

    with _whole(path):
        file = parquet.ParquetFile(path, memory_map=True)
    name = _column_name(file.schema_arrow, path)
    schema = pa.schema([file.schema_arrow.field(name)], file.schema_arrow.metadata)

    def batches() -> Iterator[pa.RecordBatch]:
        with _whole(path):
            yield from file.iter_batches(COPIED_ROWS, columns=[name])

    with atomic_file(place) as temporary, temporary.open("wb") as out, pa.ipc.new_stream(out, schema) as stream:
        for batch in batches():
            stream.write_batch(batch)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Name the file that pyarrow cannot read in the enclosed block."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise CorruptArtifactError(f"file cannot be read: `{path}`", f"copy or download it again ({error})") from error
