"""`UNet2DModel`, the DDPM U-Net in pixels (Ho et al. 2020): one width per resolution level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from edgediff.errors import BadInputError
from edgediff.families.base import Config, Widths
from edgediff.families.unets import UNet, norm_groups

ATTENTION_DOWN, ATTENTION_UP = "AttnDownBlock2D", "AttnUpBlock2D"
PREFERRED_STEP = 4  # channels; keeps a GroupNorm group of the usual four, and SIMD lanes full


class UNet2D(UNet):
    """A head's size stays the teacher's, as its config says it once for all levels."""

    name: ClassVar[str] = "unet2d"
    model_class: ClassVar[Any] = UNet2DModel
    required: ClassVar[Mapping[str, Any]] = {
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "class_embed_type": None,
    }
    # Skip blocks (NCSN++) carry image pyramids with widths of their own, and the rest belong to conditional models.
    prunable_blocks: ClassVar[frozenset[str]] = frozenset(
        {
            *("DownBlock2D", "ResnetDownsampleBlock2D", ATTENTION_DOWN),
            *("UpBlock2D", "ResnetUpsampleBlock2D", ATTENTION_UP),
            "UNetMidBlock2D",
        }
    )
    uniform_layers: ClassVar[bool] = True

    def step(self, config: Config, level: int) -> int:
        """Return whole heads where the level has attention, otherwise 4 channels, or 2 or 1 where 4 does not divide."""
        width, head_dim = config["block_out_channels"][level], config["attention_head_dim"]
        step = math.gcd(width, PREFERRED_STEP)
        if head_dim is None or not _has_attention(config, level):
            return step
        if width % head_dim:
            raise BadInputError(
                f"attention_head_dim does not divide the width of down_blocks.{level}: {head_dim}, {width}",
                "width pruning keeps whole heads, so it needs a teacher with whole heads",
            )
        return math.lcm(step, head_dim)

    def student_config(self, teacher_config: Config, widths: Widths) -> dict[str, Any]:
        """Return what `UNet.student_config` does, with the groups of the middle block's own norm."""
        config = super().student_config(teacher_config, widths)
        if config["attn_norm_num_groups"] is not None:
            before, after = teacher_config["block_out_channels"][-1:], config["block_out_channels"][-1:]
            config["attn_norm_num_groups"] = norm_groups(before, after, config["attn_norm_num_groups"])
        return config

    def example_inputs(
        self, config: Config, batch_size: int = 1, resolution: int | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return `sample`, `timestep` and, for a class-conditional model, `class_labels` (B,) int64."""
        inputs = self.example_noise(config, batch_size, resolution)
        if config["num_class_embeds"] is not None:
            inputs["class_labels"] = torch.arange(batch_size) % config["num_class_embeds"]
        return {name: value.to(device) for name, value in inputs.items()}

    def prediction(self, model: torch.nn.Module, sample: Tensor, timestep: Tensor, **conditioning: Tensor) -> Tensor:
        """Return the prediction (B, C, H, W) in the model's own prediction type."""
        return model(sample, timestep, **conditioning, return_dict=False)[0]

    def classes(self, config: Config) -> int:
        """Return how many classes a class-conditional model knows.

        Raises: BadInputError for another.
        """
        return super().classes(config) if config["num_class_embeds"] is None else config["num_class_embeds"]

    def input_names(self, config: Config) -> tuple[str, ...]:
        """Return `sample`, `timestep` and, for a class-conditional model, `class_labels`."""
        return ("sample", "timestep") + (("class_labels",) if config["num_class_embeds"] is not None else ())


def _has_attention(config: Config, level: int) -> bool:
    last = len(config["block_out_channels"]) - 1
    in_middle = level == last and config["mid_block_type"] is not None and config["add_attention"]
    return (
        in_middle
        or config["down_block_types"][level] == ATTENTION_DOWN
        or config["up_block_types"][last - level] == ATTENTION_UP
    )
