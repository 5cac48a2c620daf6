"""A small CLIP text encoder that is trained from nothing together with its denoising model, and its tokenizer.

While it is trained there are no embeddings to keep, so the model's batches hold token ids, and `Spoken` makes of them
what the stock pipeline will. Published text encoders are frozen instead (`encoding.prompts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from edgediff.artifacts import digest
from edgediff.diffusers_config import check_keys
from edgediff.encoding import vocabulary
from edgediff.encoding.parts import quiet
from edgediff.encoding.vocabulary import TOKENS
from edgediff.errors import BadInputError

ARGUMENT, EMBEDDINGS = "input_ids", "encoder_hidden_states"
PIPELINE = "StableDiffusionPipeline"  # whose one text encoder gives its model nothing but `EMBEDDINGS`
FROM_VOCABULARY = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


class TokenIds:
    """What a model is told of each of a number of images, as token ids: `Conditions`."""

    framing: ClassVar[bool] = False

    def __init__(self, ids: Tensor, row_of_image: Tensor, sha256: str) -> None:
        """Take the ids (T, 77) of all different captions, that of no caption first, and each image's row (N,)."""
        self.ids, self.row_of_image, self.sha256 = ids, row_of_image, sha256

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.row_of_image)

    def __call__(self, indices: Tensor) -> dict[str, Tensor]:
        """Return the argument `input_ids` (B, 77) int64."""
        return {ARGUMENT: self.ids[self.row_of_image[indices]]}

    def unconditional(self, count: int) -> dict[str, Tensor]:
        """Return the ids (count, 77) that stand for no caption."""
        return {ARGUMENT: self.ids[:1].expand(count, -1)}


class LearnedText:
    """A stock CLIPTokenizer that knows the words of all captions, and a stock CLIPTextModel of random weights."""

    def __init__(self, config: Mapping[str, Any], captions: Sequence[str]) -> None:
        """Make both; `config` is a CLIPTextConfig's without what the vocabulary decides.

        Raises: BadInputError for a config that CLIP does not take; MissingExtraError without transformers.
        """
        self.tokenizer: Any = vocabulary.tokenizer(captions)
        from transformers import CLIPTextConfig, CLIPTextModel

        check_keys(CLIPTextConfig, config, "text_encoder", not_yours=FROM_VOCABULARY)
        tokens = {name: getattr(self.tokenizer, name) for name in FROM_VOCABULARY[1:]}
        sizes = {"max_position_embeddings": TOKENS, "vocab_size": len(self.tokenizer)}
        try:
            with quiet():
                self.encoder: Any = CLIPTextModel(CLIPTextConfig(**{**config, **tokens, **sizes}))
        except (TypeError, ValueError, RuntimeError, KeyError, StrictDataclassError) as error:
            raise BadInputError(
                f"text_encoder: CLIPTextModel refuses it: {str(error).splitlines()[-1].strip()}"
            ) from error

    def tokens(self, captions: Sequence[str]) -> TokenIds:
        """Return the token ids of captions, one an image; an empty one means that there is none."""
        texts = list(dict.fromkeys(["", *captions]))
        ids = self.tokenizer(
            texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        row_of_text = {words: row for row, words in enumerate(texts)}
        rows = torch.tensor([row_of_text[words] for words in captions])
        return TokenIds(ids, rows, digest([ids.tolist(), rows.tolist()]))

    def save(self, pipeline: Path) -> None:
        """Write `tokenizer/` and `text_encoder/` into a pipeline's folder.

        In float32, although the rest may be in half precision: transformers loads what a file holds, diffusers float32.
        """
        with quiet():
            self.tokenizer.save_pretrained(pipeline / "tokenizer")
            self.encoder.save_pretrained(pipeline / "text_encoder", safe_serialization=True)


class Spoken(nn.Module):
    """Makes embeddings of token ids as the stock pipeline does: all of CLIP's last states, none of them masked."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, conditioning: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's arguments: (B, 77, D) of ids (B, 77); a caption of many images is encoded once."""
        texts, row_of_image = conditioning[ARGUMENT].unique(dim=0, return_inverse=True)
        return {EMBEDDINGS: self.encoder(texts).last_hidden_state[row_of_image]}
