"""The half of a pipeline that reads text: tokenizers and text encoders, used as the stock pipeline itself uses them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgediff.artifacts import digest, read_object, sha256
from edgediff.encoding import parts
from edgediff.errors import BadInputError, CorruptArtifactError, MissingExtraError

STEM = "model"
MISSING_HINT = "fetch the whole pipeline, or give an existing prompts cache"


@dataclass(frozen=True)
class Use:
    """How a pipeline class encodes text.

    Attributes:
        arguments: of the denoising model's forward, in the order of what `encode_prompt` returns of a prompt.
        options: further arguments of `encode_prompt`.
        framing: whether the model must also be told how an image was cropped and resized.
    """

    arguments: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    framing: bool = False


USES = {
    "StableDiffusionPipeline": Use(("encoder_hidden_states",)),
    "StableDiffusionXLPipeline": Use(("encoder_hidden_states", "text_embeds"), framing=True),
    "StableDiffusion3Pipeline": Use(
        ("encoder_hidden_states", "pooled_projections"), {"prompt_2": None, "prompt_3": None}
    ),
}


def use(teacher: Path) -> Use:
    """Return how the pipeline in the folder `teacher` encodes text.

    Raises: BadInputError for a pipeline class that reads no text, or is not known.
    """
    name = _index(teacher).get("_class_name")
    if name not in USES:
        raise BadInputError(f"captions cannot be encoded for a {name}: `{teacher}`", f"known: {', '.join(USES)}")
    return USES[name]


def fingerprint(teacher: Path) -> str:
    """Return one sha256 for everything that text embeddings depend on; loads no weights.

    Raises: BadInputError for text encoders or tokenizers that are missing or pickled.
    """
    found: dict[str, Any] = {}
    for name, (folder, _) in _text_parts(teacher).items():
        if name.startswith("tokenizer"):
            found[name] = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
        else:
            found[name] = parts.fingerprint(folder, STEM)
    index = _index(teacher)
    return digest([index["_class_name"], index.get("force_zeros_for_empty_prompt"), found])


class TextEncoders:
    """A stock pipeline without everything that does not read text, in float32."""

    def __init__(self, teacher: Path, device: torch.device | str = "cpu") -> None:
        """Load text encoders and tokenizers of the pipeline folder `teacher`.

        Raises: BadInputError for one that is missing or pickled, or for a pipeline that reads no text;
        CorruptArtifactError for one that is damaged; MissingExtraError without transformers.
        """
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError("transformers", "text", "encoding captions") from error
        import diffusers

        self.use, self.device = use(teacher), torch.device(device)
        index = _index(teacher)
        with parts.quiet():
            kind = getattr(diffusers, index["_class_name"])
            wanted = inspect.signature(kind.__init__).parameters
            components: dict[str, Any] = {
                name: None for name, what in wanted.items() if name != "self" and what.default is what.empty
            }
            components |= {name: index[name] for name in wanted if isinstance(index.get(name), bool)}
            for name, (folder, class_name) in _text_parts(teacher).items():
                part = getattr(transformers, class_name, None)
                if not hasattr(part, "from_pretrained"):
                    raise BadInputError(f"transformers has no class `{class_name}`, which is in `{folder}`")
                if name.startswith("tokenizer"):
                    components[name] = _tokenizer(part, folder)
                else:
                    components[name] = parts.load(part, folder, STEM).to(device)
            if kind is diffusers.StableDiffusion3Pipeline:
                components["transformer"] = _outline(diffusers.SD3Transformer2DModel, teacher / "transformer")
            self.pipeline = kind(**components)

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the embeddings (B, ...) of texts, by the names of the denoising model's arguments."""
        return self._arguments(self._encode(texts, guidance=False)[::2])

    def unconditional(self) -> dict[str, Tensor]:
        """Return what the pipeline puts in the place of a text for classifier-free guidance, (1, ...) each.

        Of most it is the embedding of an empty text, of SDXL zeros.
        """
        return self._arguments(self._encode([""], guidance=True)[1::2])

    def count_cut(self, texts: Sequence[str]) -> int:
        """Return how many texts are longer than CLIP reads."""
        tokenizer = self.pipeline.components["tokenizer"] or self.pipeline.components["tokenizer_2"]
        with parts.quiet():
            return sum(len(tokens) > tokenizer.model_max_length for tokens in tokenizer(list(texts)).input_ids)

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str], guidance: bool) -> tuple[Tensor, ...]:
        with parts.quiet():
            return self.pipeline.encode_prompt(
                prompt=list(texts),
                device=self.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=guidance,
                **self.use.options,
            )

    def _arguments(self, said: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.use.arguments, said, strict=True))


def text_encoders(teacher: Path) -> list[tuple[Path, str]]:
    """Return the folder and the class of every text encoder of a pipeline; loads no weights.

    Raises: BadInputError for one that is missing, and for a pipeline without any.
    """
    return [part for name, part in _text_parts(teacher).items() if name.startswith("text_encoder")]


def _index(teacher: Path) -> dict[str, Any]:
    return read_object(teacher / "model_index.json")


def _text_parts(teacher: Path) -> dict[str, tuple[Path, str]]:
    """Return the folder and the class of every text encoder and tokenizer of a pipeline, by name.

    Those that it was saved without, as SD 3 often is without T5, are not among them.

    Raises: BadInputError for one that is missing, and for a pipeline without any.
    """
    found: dict[str, tuple[Path, str]] = {}
    for name, what in _index(teacher).items():
        kind = "text encoder" if name.startswith("text_encoder") else "tokenizer"
        if not name.startswith(("text_encoder", "tokenizer")) or what == [None, None]:
            continue
        if not (teacher / name).is_dir():
            raise BadInputError(f"the teacher's folder has no {kind}: `{teacher / name}`", MISSING_HINT)
        found[name] = (teacher / name, what[1])
    if not found:
        raise BadInputError(f"the teacher's folder has no text encoder: `{teacher}`", MISSING_HINT)
    return found


def _tokenizer(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # its reader, in Rust, raises no kind of its own
        first = str(error).strip().splitlines()[0]
        raise CorruptArtifactError(f"tokenizer cannot be read: `{folder}`", f"fetch it again ({first})") from error


def _outline(kind: Any, folder: Path) -> Any:
    """Return a model of the folder's config without weights, of which a pipeline reads sizes only."""
    with torch.device("meta"):
        return kind.from_config(read_object(folder / "config.json"))
