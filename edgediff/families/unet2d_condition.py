"""`UNet2DConditionModel`, the U-Net of Stable Diffusion 1, 2 and XL and of the models cut from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from edgediff.errors import BadInputError
from edgediff.families.base import Config, DepthCut, Widths
from edgediff.families.unet_depth import MIDDLE_RESIDUAL, MIDDLE_TRANSFORMER, TRANSFORMERS
from edgediff.families.unet_depth_rules import fitting_rules
from edgediff.families.unets import UNet

TEXT_TOKENS = 77  # of the CLIP text encoders
TIME_IDS = 6  # height and width of the original image, crop from the top and the left, height and width of the target
PIXELS = 8  # a latent's side in pixels
STEPS = 10  # a level's width has at least so many, so that nine tenths of it can go
LARGEST_STEP = 32  # channels; what GPUs like to multiply


class UNet2DCondition(UNet):
    """Attention heads follow the width of their level; what the text encoders give stays as it is.

    A level takes the fewest heads, none larger than the teacher's, that fill its width: whole heads where the teacher's
    size divides it, below that one smaller head (SD 2.1 at 32 channels), in between several (160 channels: 4 of 40).
    """

    name: ClassVar[str] = "unet2d_condition"
    model_class: ClassVar[Any] = UNet2DConditionModel
    required: ClassVar[Mapping[str, Any]] = {
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "time_cond_proj_dim": None,
        "class_embed_type": None,
        "num_class_embeds": None,
        "encoder_hid_dim_type": None,
        "dual_cross_attention": False,
        "attention_type": "default",
    }
    prunable_blocks: ClassVar[frozenset[str]] = TRANSFORMERS | {
        *("DownBlock2D", "UpBlock2D", MIDDLE_TRANSFORMER, MIDDLE_RESIDUAL)
    }
    uniform_layers: ClassVar[bool] = False

    def levels(self, config: Config) -> Widths:
        """Return what `UNet.levels` does.

        Raises: BadInputError when this config uses a feature whose pruning is not supported.
        """
        if config["addition_embed_type"] not in (None, "text_time"):
            raise BadInputError(
                f"width pruning does not support addition_embed_type: {config['addition_embed_type']}",
                "it needs None or text_time",
            )
        if not isinstance(config["cross_attention_dim"], int):
            raise BadInputError(
                f"width pruning does not support one cross_attention_dim a level: {config['cross_attention_dim']}",
                "it needs a single one, as all attentions see the same text",
            )
        return super().levels(config)

    def step(self, config: Config, level: int) -> int:
        """Return whole heads where ten or more fill the level, otherwise 32 channels, or less in a narrow level."""
        width = config["block_out_channels"][level]
        if _has_attention(config, level):
            heads = _heads(config)[level]
            if width % heads:
                raise BadInputError(
                    f"attention heads do not fill the width of down_blocks.{level}: {heads} heads, {width} channels",
                    "width pruning keeps whole heads, so it needs a teacher with whole heads",
                )
            if heads >= STEPS:
                return width // heads
        step = math.gcd(width, LARGEST_STEP)
        while step > 1 and width // step < STEPS:
            step //= 2
        return step

    def student_config(self, teacher_config: Config, widths: Widths) -> dict[str, Any]:
        """Return what `UNet.student_config` does, with the number of heads of every level.

        In these configs `attention_head_dim` means the number of heads.

        Raises: BadInputError also for a width that no number of heads fills.
        """
        config = super().student_config(teacher_config, widths)
        before, after = teacher_config["block_out_channels"], config["block_out_channels"]
        heads = _heads(teacher_config)
        student_heads = tuple(
            _heads_for(f"down_blocks.{i}", before[i], heads[i], after[i])
            if _has_attention(teacher_config, i)
            else heads[i]
            for i in range(len(heads))
        )
        if student_heads != heads:
            config["attention_head_dim"] = student_heads
        return config

    def depth_rules(self, config: Config) -> dict[str, Callable[[Config], DepthCut]]:
        """Return the cuts of BK-SDM for Stable Diffusion 1 and 2, and of SSD-1B and KOALA for Stable Diffusion XL."""
        return fitting_rules(config)

    def example_inputs(
        self, config: Config, batch_size: int = 1, resolution: int | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return `sample`, `timestep` and the conditioning.

        `encoder_hidden_states` (B, 77, D) from N(0, 1); for SDXL `text_embeds` (B, E) from N(0, 1) and `time_ids`
        (B, 6) float32, those of an uncropped image of the sample's size in pixels.
        """
        inputs = self.example_noise(config, batch_size, resolution)
        generator = torch.Generator().manual_seed(1)
        inputs["encoder_hidden_states"] = torch.randn(
            batch_size, TEXT_TOKENS, config["cross_attention_dim"], generator=generator
        )
        if config["addition_embed_type"] is not None:
            size = config["projection_class_embeddings_input_dim"] - TIME_IDS * config["addition_time_embed_dim"]
            height, width = (PIXELS * side for side in inputs["sample"].shape[2:])
            inputs["text_embeds"] = torch.randn(batch_size, size, generator=generator)
            inputs["time_ids"] = torch.tensor([[height, width, 0.0, 0.0, height, width]]).repeat(batch_size, 1)
        return {name: value.to(device) for name, value in inputs.items()}

    def prediction(self, model: torch.nn.Module, sample: Tensor, timestep: Tensor, **conditioning: Tensor) -> Tensor:
        """Return the prediction (B, C, H, W) in the model's own prediction type."""
        text = conditioning.pop("encoder_hidden_states")
        return model(sample, timestep, text, added_cond_kwargs=conditioning, return_dict=False)[0]

    def input_names(self, config: Config) -> tuple[str, ...]:
        """Return `sample`, `timestep`, `encoder_hidden_states` and, for SDXL, `text_embeds` and `time_ids`."""
        added = ("text_embeds", "time_ids") if config["addition_embed_type"] is not None else ()
        return ("sample", "timestep", "encoder_hidden_states", *added)


def _has_attention(config: Config, level: int) -> bool:
    last = len(config["block_out_channels"]) - 1
    return (
        (level == last and config["mid_block_type"] == MIDDLE_TRANSFORMER)
        or config["down_block_types"][level] in TRANSFORMERS
        or config["up_block_types"][last - level] in TRANSFORMERS
    )


def _heads(config: Config) -> tuple[int, ...]:
    heads = config["attention_head_dim"]
    return (heads,) * len(config["block_out_channels"]) if isinstance(heads, int) else tuple(heads)


def _heads_for(level: str, teacher_width: int, teacher_heads: int, width: int) -> int:
    largest = teacher_width // teacher_heads
    for heads in range(math.ceil(width / largest), teacher_heads + 1):
        if width % heads == 0:
            return heads
    raise BadInputError(
        f"width of {level} cannot be {width}: up to {teacher_heads} heads of up to {largest} channels do not fill it",
        f"use a multiple of {largest}",
    )
