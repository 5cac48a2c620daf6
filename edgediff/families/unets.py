"""What the U-Net families share: one width per resolution level, and depth in layers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgediff.errors import BadInputError
from edgediff.families import unet_depth
from edgediff.families.base import Config, DepthCut, Family, Widths


class UNet(Family):
    """Width is `block_out_channels`, depth the layers of every level; where attention stands stays the teacher's.

    Attributes:
        required: the only value of a config key with which width pruning is supported.
        prunable_blocks: types of down, middle and up blocks that can be pruned.
        uniform_layers: whether the stock class wants as many layers at every level.
    """

    fixed_outputs: ClassVar[tuple[str, ...]] = ("conv_out",)
    block_lists: ClassVar[tuple[str, ...]] = (
        "resnets",
        "attentions",
        "transformer_blocks",
        "downsamplers",
        "upsamplers",
    )
    required: ClassVar[Mapping[str, Any]]
    prunable_blocks: ClassVar[frozenset[str]]
    uniform_layers: ClassVar[bool]

    @abstractmethod
    def step(self, config: Config, level: int) -> int:
        """Return the number of channels by which one level's width could change if it stood alone.

        Raises: BadInputError when the level's attention heads do not fill it.
        """

    def levels(self, config: Config) -> Widths:
        """Return `down_blocks.i` → `block_out_channels[i]`; the mirrored up block has the same width."""
        for key, value in self.required.items():
            if config[key] != value:
                raise BadInputError(f"width pruning does not support {key}: {config[key]}", f"it needs {value}")
        if config["out_channels"] != config["in_channels"]:
            raise BadInputError(
                f"the model reads {config['in_channels']} channels and predicts {config['out_channels']}: a learned "
                "variance, or an image beside the noised one",
                "U-Nets that predict the noise of all channels they read are supported",
            )
        self._check_blocks(config)
        return {f"down_blocks.{i}": width for i, width in enumerate(config["block_out_channels"])}

    def granularity(self, config: Config) -> Widths:
        """Return every level's `step`.

        Neighbouring levels of one width share one, because a student must keep them equal (`student_config`).
        """
        levels = self.levels(config)
        steps = [self.step(config, level) for level in range(len(levels))]
        for run in equal_runs(list(levels.values())):
            shared = math.lcm(*(steps[level] for level in run))
            for level in run:
                steps[level] = shared
        return dict(zip(levels, steps, strict=True))

    def axes(self, config: Config) -> list[list[str]]:
        """Return the levels in runs of neighbours of one width, which a student must keep equal."""
        levels = self.levels(config)
        names = list(levels)
        return [[names[level] for level in run] for run in equal_runs(list(levels.values()))]

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
        config["norm_num_groups"] = norm_groups(before, after, teacher_config["norm_num_groups"])
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

    def blocks(self, config: Config) -> tuple[str, ...]:
        """Return layers, transformer blocks and the middle block: see `unet_depth.removable`."""
        self._check_blocks(config)
        return unet_depth.removable(config, self.uniform_layers)

    def without_blocks(self, config: Config, removed: Collection[str]) -> DepthCut:
        """Return the stock model that lacks these `blocks`; every choice among them is one.

        Raises: BadInputError for names that are not among `blocks`.
        """
        offered = self.blocks(config)
        unknown = [name for name in removed if name not in offered]
        if unknown:
            raise BadInputError(
                f"blocks that cannot be removed: {', '.join(unknown)}", f"removable: {', '.join(offered) or 'none'}"
            )
        return unet_depth.without(config, removed)

    def example_noise(self, config: Config, batch_size: int, resolution: int | None) -> dict[str, Tensor]:
        """Return `sample` (B, C, H, W) from N(0, 1) and `timestep` (B,) int64.

        A config without sample size gives the side that leaves 4x4 at the lowest level.
        """
        side = resolution or config["sample_size"] or 4 * 2 ** (len(config["block_out_channels"]) - 1)
        height, width = (side, side) if isinstance(side, int) else side
        noise = torch.randn(
            batch_size, config["in_channels"], height, width, generator=torch.Generator().manual_seed(0)
        )
        return {"sample": noise, "timestep": torch.linspace(0, 999, batch_size + 2)[1:-1].long()}

    def feature_points(self, config: Config, compared: Sequence[Config]) -> tuple[str, ...]:
        """Return the blocks of every level that all have: down, middle (where all have one), up.

        Where only some of the models go further down, these halve the resolution behind the last level that all have;
        its last layer then stands for its down block (as in BK-SDM-Tiny, Kim et al. 2023), and what is below has no
        point.
        """
        levels = [len(of["down_block_types"]) for of in compared]
        depth = unet_depth.whole(config)
        down, up = depth.side("down_blocks")[: min(levels)], depth.side("up_blocks")[-min(levels) :]
        if min(levels) == max(levels):
            middle = all(of["mid_block_type"] is not None for of in (config, *compared))
            return (*down, *([unet_depth.MIDDLE] if middle else []), *up)
        last = depth.blocks[down[-1]][-1]
        return (*down[:-1], f"{down[-1]}.{last.parts[-1]}.{last.index}", *up)

    def _check_blocks(self, config: Config) -> None:
        for block in (*config["down_block_types"], config["mid_block_type"], *config["up_block_types"]):
            if block is not None and block not in self.prunable_blocks:
                raise BadInputError(
                    f"pruning does not support the block type: {block}",
                    f"supported: {', '.join(sorted(self.prunable_blocks))}",
                )

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


def equal_runs(widths: Sequence[int]) -> list[list[int]]:
    """Return the levels in runs of neighbours of one width."""
    runs: list[list[int]] = [[0]]
    for level in range(1, len(widths)):
        if widths[level] == widths[level - 1]:
            runs[-1].append(level)
        else:
            runs.append([level])
    return runs


def norm_groups(before: Sequence[int], after: Sequence[int], teacher_groups: int) -> int:
    """Return the most groups, at most the teacher's, whose smallest group is not smaller than the teacher's.

    Dividing the greatest common divisor of all widths, they divide every sum of widths too (skip concatenations).
    Normalising over fewer channels than the teacher did makes the statistics noisier, and over a single channel it
    would erase the time embedding, which shifts whole channels; one group is the last resort.
    """
    smallest_group = min(before) // teacher_groups
    common = math.gcd(*after)
    fitting = (
        groups
        for groups in range(min(teacher_groups, common), 1, -1)
        if common % groups == 0 and min(after) // groups >= smallest_group
    )
    return next(fitting, 1)
