"""How much work encoding is, counted from configs before any weights are loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from edgediff.artifacts import read_object
from edgediff.encoding.text import text_encoders
from edgediff.metrics.cost import macs, parameter_count


def latent_macs(teacher: Path, shape: tuple[int, int, int]) -> int:
    """Return the multiply-accumulates of one image's latents.

    Args: teacher: a pipeline folder with a VAE. shape: (C, H, W) of the image.
    """
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(read_object(teacher / "vae" / "config.json"))
        return macs(vae.encoder, {"sample": torch.zeros(1, *shape)})


def text_macs(teacher: Path, tokens: int) -> int:
    """Return the multiply-accumulates of one caption's embeddings, about: every parameter meets every token once.

    Args: teacher: a pipeline folder with text encoders. tokens: of the embeddings.
    """
    import transformers

    total = 0
    for folder, class_name in text_encoders(teacher):
        kind = getattr(transformers, class_name)
        with torch.device("meta"):
            total += parameter_count(kind(kind.config_class.from_pretrained(folder))) * tokens
    return total
