"""Text embeddings of captions, made once with a pipeline's text encoders, so that training needs none of them.

Every different caption has one row. Row 0 is what the pipeline sees without a caption (classifier-free guidance).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from edgediff.artifacts import digest, read_object
from edgediff.encoding import store, text
from edgediff.encoding.store import Store
from edgediff.encoding.text import TextEncoders
from edgediff.output import Output

KIND = "prompts"
CAPTIONS = "captions.json"
SEPARATORS = (",", ":")


class PromptCache:
    """What a text-conditional model is told of each of a number of images, by index: `Conditions`."""

    def __init__(self, rows: Store) -> None:
        """Take the rows that `open` or `encode` has found.

        Raises: BadInputError or CorruptArtifactError when the list of captions is missing or damaged.
        """
        self.rows = rows
        self.sha256 = rows.sha256
        self.arguments: tuple[str, ...] = tuple(rows.facts["arguments"])
        self.framing: bool = rows.facts["framing"]
        self._row_of_image = torch.tensor(read_object(rows.folder / CAPTIONS)["rows"], dtype=torch.int64)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a finished cache, without comparing what it was made from with anything.

        Raises: BadInputError for what is no cache of prompts, or not finished.
        """
        return cls(Store.open(folder, KIND))

    def __len__(self) -> int:
        """Return the number of images, which is the number of captions that were given."""
        return len(self._row_of_image)

    def __call__(self, indices: Tensor) -> dict[str, Tensor]:
        """Return the embeddings of the captions of images (B,): arguments of the model's forward, (B, ...) float32.

        Raises: CorruptArtifactError that names a damaged shard.
        """
        return self._read(self._row_of_image[indices])

    def unconditional(self, count: int = 1) -> dict[str, Tensor]:
        """Return what stands in the place of a caption where there is none, for `count` images."""
        return self._read(torch.zeros(count, dtype=torch.int64))

    def _read(self, rows: Tensor) -> dict[str, Tensor]:
        values = self.rows.read(rows, *self.arguments)
        return {name: of_name.float() for name, of_name in zip(self.arguments, values, strict=True)}


def encode(
    folder: Path,
    captions: Sequence[str],
    teacher: Path,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    output: Output | None = None,
) -> PromptCache:
    """Make, continue or mend the cache in `folder`, of all captions by the text encoders of the folder `teacher`.

    They are loaded when there is something left to do. Another batch size changes speed and the last bit only.

    Args: captions: one an image; an empty one means that there is none.
    Raises: BadInputError for a teacher without text encoders, and, naming what differs, for a cache of other text
    encoders or of other captions; MissingExtraError without transformers; CorruptArtifactError for weights that do not
    fit their config; StageFailedError for embeddings that are not finite, or a full disk.
    """
    output = output or Output()
    texts = list(dict.fromkeys(["", *captions]))
    row_of_text = {words: row for row, words in enumerate(texts)}
    use = text.use(teacher)
    cut = 0

    @cache
    def encoders() -> TextEncoders:
        return TextEncoders(teacher, device)

    def rows(start: int, stop: int) -> dict[str, Tensor]:
        nonlocal cut
        batch = texts[start:stop]
        cut += encoders().count_cut(batch)
        encoded = [encoders().unconditional()] if start == 0 else []
        if batch[len(encoded) :]:
            encoded.append(encoders()(batch[len(encoded) :]))
        return {name: torch.cat([of_part[name] for of_part in encoded]) for name in use.arguments}

    listed = {"texts": texts, "rows": [row_of_text[words] for words in captions]}
    filled = store.fill(
        folder,
        KIND,
        rows,
        count=len(texts),
        inputs={"text encoders": text.fingerprint(teacher), "captions": digest(list(captions))},
        facts={"arguments": use.arguments, "framing": use.framing},
        batch_size=batch_size,
        output=output,
        beside={CAPTIONS: json.dumps(listed, ensure_ascii=False, separators=SEPARATORS)},
    )
    if cut:
        output.say(f"captions longer than CLIP reads, whose end is left out: {cut:,} of {len(texts) - 1:,}")
    return PromptCache(filled)
