"""`UNet2DModel`, the DDPM U-Net in pixels (Ho et al. 2020): one width per resolution level."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from edgediff.errors import BadInputError
from edgediff.families.base import Config, Family, Widths

ATTENTION_DOWN, ATTENTION_UP = "AttnDownBlock2D", "AttnUpBlock2D"
# Skip blocks (NCSN++) carry image pyramids with widths of their own, and the rest belong to conditional models.
PRUNABLE_BLOCKS = {
    *("DownBlock2D", "ResnetDownsampleBlock2D", ATTENTION_DOWN),
    *("UpBlock2D", "ResnetUpsampleBlock2D", ATTENTION_UP),
}
PREFERRED_STEP = 4  # channels; keeps a GroupNorm group of the usual four, and SIMD lanes full


class UNet2D(Family):
    """Width is `block_out_channels`; depth (`layers_per_block`) and attention positions stay the teacher's."""

    name: ClassVar[str] = "unet2d"
    model_class: ClassVar[Any] = UNet2DModel
    fixed_outputs: ClassVar[tuple[str, ...]] = ("conv_out",)

    def levels(self, config: Config) -> Widths:
        """Return `down_blocks.i` → `block_out_channels[i]`; the mirrored up block has the same width."""
        _check_prunable(config)
        return {f"down_blocks.{i}": width for i, width in enumerate(config["block_out_channels"])}

    def granularity(self, config: Config) -> Widths:
        """Return whole heads where the level has attention, otherwise 4 channels, or 2 or 1 where 4 does not divide.

        Neighbouring levels of one width share one step, because a student must keep them equal (`student_config`).
        """
        levels = self.levels(config)
        steps = []
        for level, (name, width) in enumerate(levels.items()):
            step = math.gcd(width, PREFERRED_STEP)
            head_dim = config["attention_head_dim"]
            if head_dim is not None and _has_attention(config, level):
                if width % head_dim:
                    raise BadInputError(
                        f"attention_head_dim does not divide the width of {name}: {head_dim}, {width}",
                        "width pruning keeps whole heads, so it needs a teacher with whole heads",
                    )
                step = math.lcm(step, head_dim)
            steps.append(step)
        widths = list(levels.values())
        for run in _equal_runs(widths):
            shared = math.lcm(*(steps[level] for level in run))
            for level in run:
                steps[level] = shared
        return dict(zip(levels, steps, strict=True))

    def student_config(self, teacher_config: Config, widths: Widths) -> dict[str, Any]:
        """Return the teacher's config with `widths` and the GroupNorm groups and time embedding that fit them.

        Neighbouring levels must be equal exactly where the teacher's are: a residual block has a `conv_shortcut` only
        where its width changes, and a student can neither drop nor invent one.
        """
        self._check_widths(teacher_config, widths)
        levels = self.levels(teacher_config)
        before, after = list(levels.values()), [widths[level] for level in levels]
        config = {key: value for key, value in teacher_config.items() if not key.startswith("_")}
        config["block_out_channels"] = tuple(after)
        config["norm_num_groups"] = _norm_groups(before, after, teacher_config["norm_num_groups"])
        if config["attn_norm_num_groups"] is not None:
            config["attn_norm_num_groups"] = _norm_groups(before[-1:], after[-1:], config["attn_norm_num_groups"])
        if config["time_embedding_dim"] is not None:
            # Stock models derive this width from the first level; an explicit one keeps its proportion to it.
            config["time_embedding_dim"] = max(1, round(config["time_embedding_dim"] * after[0] / before[0]))
        return config

    def fixed_slices(self, teacher_config: Config, student_config: Config) -> dict[str, dict[int, list[int]]]:
        """Return the columns of the first time-embedding layer: one per sine and cosine that the student computes."""
        columns = time_columns(
            teacher_config["block_out_channels"][0],
            student_config["block_out_channels"][0],
            teacher_config["freq_shift"],
        )
        return {"time_embedding.linear_1.weight": {1: columns}}

    def example_inputs(
        self, config: Config, batch_size: int = 1, resolution: int | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return `sample` (B, C, H, W) from N(0, 1), `timestep` (B,) int64 and, for a class-conditional model, labels.

        A config without sample size gives the side that leaves 4x4 at the lowest level.
        """
        side = resolution or config["sample_size"] or 4 * 2 ** (len(config["block_out_channels"]) - 1)
        height, width = (side, side) if isinstance(side, int) else side
        noise = torch.randn(
            batch_size, config["in_channels"], height, width, generator=torch.Generator().manual_seed(0)
        )
        inputs = {"sample": noise, "timestep": torch.linspace(0, 999, batch_size + 2)[1:-1].long()}
        if config["num_class_embeds"] is not None:
            inputs["class_labels"] = torch.arange(batch_size) % config["num_class_embeds"]
        return {name: value.to(device) for name, value in inputs.items()}

    def prediction(self, model: torch.nn.Module, sample: Tensor, timestep: Tensor, **conditioning: Tensor) -> Tensor:
        """Return the prediction (B, C, H, W) in the model's own prediction type."""
        return model(sample, timestep, **conditioning, return_dict=False)[0]

    def feature_points(self, model: torch.nn.Module) -> tuple[torch.nn.Module, ...]:
        """Return all blocks: down, middle, up; teacher and student have as many, of equal resolutions."""
        unet: Any = model
        middle = [] if unet.mid_block is None else [unet.mid_block]
        return (*unet.down_blocks, *middle, *unet.up_blocks)

    def input_names(self, config: Config) -> tuple[str, ...]:
        """Return `sample`, `timestep` and, for a class-conditional model, `class_labels`."""
        return ("sample", "timestep") + (("class_labels",) if config["num_class_embeds"] is not None else ())

    def _check_widths(self, teacher_config: Config, widths: Widths) -> None:
        before, steps = self.levels(teacher_config), self.granularity(teacher_config)
        if set(widths) != set(before):
            raise BadInputError(
                f"widths name other levels than the model: {', '.join(widths)}", f"use {', '.join(before)}"
            )
        for name, width in widths.items():
            if not 0 < width <= before[name] or width % steps[name]:
                raise BadInputError(
                    f"width of {name} cannot be {width}",
                    f"use a multiple of {steps[name]} from {steps[name]} to {before[name]}",
                )
        for one, other in pairwise(before):
            if (before[one] == before[other]) != (widths[one] == widths[other]):
                relation = "be equal" if before[one] == before[other] else "differ"
                raise BadInputError(
                    f"widths of {one} and {other} must {relation}, as in the teacher: {widths[one]}, {widths[other]}",
                    "a residual block has a shortcut convolution only where its width changes; change one of the two",
                )
        first = next(iter(before))
        if widths[first] // 2 <= teacher_config["freq_shift"]:
            raise BadInputError(
                f"width of {first} is too small for the time embedding: {widths[first]}",
                f"use at least {2 * teacher_config['freq_shift'] + 2}",
            )


def time_columns(teacher_dim: int, student_dim: int, freq_shift: float) -> list[int]:
    """Return which entries of the teacher's sinusoidal embedding stand for the entries of the student's.

    A model of width c computes frequencies exp(-ln(10000) i / (c/2 - freq_shift)), i < c/2, so the student's are not
    a subset of the teacher's: each is matched with the nearest one on the logarithmic scale. Both halves of the
    embedding (sines and cosines, in either order) hold all frequencies, so the same matches serve both; an odd width
    ends with one zero.
    """
    teacher_half, student_half = teacher_dim // 2, student_dim // 2
    scale = (teacher_half - freq_shift) / (student_half - freq_shift)
    matches = [min(round(i * scale), teacher_half - 1) for i in range(student_half)]
    padding = [teacher_dim - 1] if student_dim % 2 else []
    return matches + [teacher_half + match for match in matches] + padding


def _check_prunable(config: Config) -> None:
    required = {"resnet_time_scale_shift": "default", "time_embedding_type": "positional", "class_embed_type": None}
    for key, value in required.items():
        if config[key] != value:
            raise BadInputError(f"width pruning does not support {key}: {config[key]}", f"it needs {value}")
    for block in (*config["down_block_types"], *config["up_block_types"]):
        if block not in PRUNABLE_BLOCKS:
            raise BadInputError(
                f"width pruning does not support the block type: {block}",
                f"supported: {', '.join(sorted(PRUNABLE_BLOCKS))}",
            )


def _has_attention(config: Config, level: int) -> bool:
    last = len(config["block_out_channels"]) - 1
    in_middle = level == last and config["mid_block_type"] is not None and config["add_attention"]
    return (
        in_middle
        or config["down_block_types"][level] == ATTENTION_DOWN
        or config["up_block_types"][last - level] == ATTENTION_UP
    )


def _equal_runs(widths: list[int]) -> list[list[int]]:
    runs: list[list[int]] = [[0]]
    for level in range(1, len(widths)):
        if widths[level] == widths[level - 1]:
            runs[-1].append(level)
        else:
            runs.append([level])
    return runs


def _norm_groups(before: list[int], after: list[int], teacher_groups: int) -> int:
    """Return the most groups, at most the teacher's, whose smallest group is not smaller than the teacher's.

    Dividing the greatest common divisor of all widths, they divide every sum of widths too (skip concatenations).
    Normalising over fewer channels than the teacher did makes the statistics noisier; one group is the last resort.
    """
    smallest_group = min(before) // teacher_groups
    common = math.gcd(*after)
    fitting = (
        groups
        for groups in range(min(teacher_groups, common), 1, -1)
        if common % groups == 0 and min(after) // groups >= smallest_group
    )
    return next(fitting, 1)
