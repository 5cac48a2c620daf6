"""A text encoder of Stable Diffusion 1 in the form in which Stable Diffusion 3 takes it."""

from __future__ import annotations

from pathlib import Path

import torch

from edgediff.encoding import parts
from edgediff.encoding.text import STEM
from edgediff.errors import MissingExtraError

CLASS_NAME = "CLIPTextModelWithProjection"


def with_projection(source: Path, target: Path) -> None:
    """Write the CLIPTextModel in the folder `source` as a CLIPTextModelWithProjection, to `target`, in float32.

    Its projection, which CLIP learns beside images, is the identity: the pooled text is CLIP's own last state.

    Raises: as `parts.load`; MissingExtraError without transformers.
    """
    try:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection
    except ImportError as error:
        raise MissingExtraError("transformers", "text", "a text encoder") from error
    encoder = parts.load(CLIPTextModel, source, STEM)
    config = encoder.config
    config.projection_dim = config.hidden_size
    projected = CLIPTextModelWithProjection(config)
    projected.text_model.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        projected.text_projection.weight.copy_(torch.eye(config.hidden_size))
    with parts.quiet():
        projected.save_pretrained(target, safe_serialization=True)
