"""What the transformer families share: width in whole heads, depth in blocks, tokens as feature maps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgediff.errors import BadInputError
from edgediff.families.base import Config, DepthCut, Family, Widths
from edgediff.families.coupling import IN, OUT, Buffers, Group, Member

BLOCKS = "transformer_blocks"  # the one level, and the module list of the blocks
QKV = ("to_q", "to_k", "to_v")
FEED_FORWARD = 4  # times the width: diffusers' default, which no config of these classes changes
MODULATIONS = 6  # of an adaptive norm: shift, scale and gate of attention and of feed-forward
OUTPUT_MODULATIONS = 2  # shift and scale, where a stream ends
POSITION_STEP = 4  # channels: sines and cosines of height and width
FEATURE_POINTS = 4


class Transformer(Family):
    """Width is the number of attention heads, depth the number of blocks.

    In the stock classes the residual stream is as wide as all heads of a block together and the feed-forward layer four
    times that, so one number sets every width. Channels are named by hand: a tracer sees in the chunks of an adaptive
    norm one long row of channels and prunes too much of it.
    """

    component: ClassVar[str] = "transformer"
    block_lists: ClassVar[tuple[str, ...]] = (BLOCKS,)

    def levels(self, config: Config) -> Widths:
        """Return `transformer_blocks` → channels of the residual stream, which are those of all heads of a block."""
        return {BLOCKS: config["num_attention_heads"] * config["attention_head_dim"]}

    def granularity(self, config: Config) -> Widths:
        """Return the channels of one head, or of as many as give position embeddings a multiple of 4."""
        return {BLOCKS: math.lcm(config["attention_head_dim"], POSITION_STEP)}

    def student_config(self, teacher_config: Config, widths: Widths) -> dict[str, Any]:
        """Return the teacher's config with as many heads as fill the width; the size of a head stays.

        Raises: BadInputError for another level than `transformer_blocks`, and for a width that is no multiple of the
        granularity or over the teacher's.
        """
        (before,), (step,) = self.levels(teacher_config).values(), self.granularity(teacher_config).values()
        if set(widths) != {BLOCKS}:
            raise BadInputError(f"widths name other levels than the model: {', '.join(widths)}", f"use {BLOCKS}")
        width = widths[BLOCKS]
        if not 0 < width <= before or width % step:
            raise BadInputError(
                f"width of {BLOCKS} cannot be {width}", f"use a multiple of {step} from {step} to {before}"
            )
        return {**_public(teacher_config), "num_attention_heads": width // teacher_config["attention_head_dim"]}

    @abstractmethod
    def coupled_groups(self, config: Config) -> list[Group]:
        """Return the channels that stay or go together, named by hand."""

    def fixed_slices(self, teacher_config: Config, student_config: Config) -> dict[str, dict[int, list[int]]]:
        """Return nothing: sinusoidal timestep embeddings have 256 entries at every width."""
        return {}

    def blocks(self, config: Config) -> tuple[str, ...]:
        """Return `transformer_blocks.0` and so on."""
        return tuple(f"{BLOCKS}.{i}" for i in range(config["num_layers"]))

    def without_blocks(self, config: Config, removed: Collection[str]) -> DepthCut:
        """Return the model of the other blocks, in their order.

        Raises: BadInputError for names that are not among `blocks`, and when no block would stay.
        """
        offered = self.blocks(config)
        unknown = [name for name in removed if name not in offered]
        if unknown:
            raise BadInputError(
                f"blocks that cannot be removed: {', '.join(unknown)}", f"removable: {', '.join(offered) or 'none'}"
            )
        kept = kept_blocks(config, removed)
        if not kept:
            raise BadInputError("no block would stay", "keep at least one")
        sources = {f"{BLOCKS}.{new}": f"{BLOCKS}.{old}" for new, old in enumerate(kept) if new != old}
        return DepthCut({**_public(config), "num_layers": len(kept)}, sources)

    def feature_points(self, config: Config, compared: Sequence[Config]) -> tuple[str, ...]:
        """Return the blocks at the end of each quarter of the depth, so that shallow students match their teachers.

        Where a model has fewer than four blocks, the depths of all are divided into as many parts as it has.
        """
        layers = config["num_layers"]
        parts = min(FEATURE_POINTS, layers, *(of["num_layers"] for of in compared))
        return tuple(f"{BLOCKS}.{math.ceil(layers * i / parts) - 1}" for i in range(1, parts + 1))

    def feature_map(self, output: Any, sample: Tensor) -> Tensor:
        """Return a block's tokens of the sample, (B, h·w, D), as a map (B, D, h, w), one position a patch."""
        tokens = output[-1] if isinstance(output, tuple) else output  # joint blocks give the text's tokens first
        height, width = sample.shape[-2:]
        patch = math.isqrt(height * width // tokens.shape[1])
        return tokens.transpose(1, 2).unflatten(2, (height // patch, width // patch))


def kept_blocks(config: Config, removed: Collection[str]) -> list[int]:
    """Return the teacher's indices of the blocks that stay, ascending."""
    return [i for i in range(config["num_layers"]) if f"{BLOCKS}.{i}" not in removed]


def paths(parents: Iterable[str], *children: str) -> list[str]:
    """Return the name of every child in every parent."""
    return [f"{parent}.{child}" for parent in parents for child in children]


def coupled(
    width: int,
    produced: Mapping[str, int] | Iterable[str],
    consumed: Iterable[str],
    buffers: Buffers = (),
    spread: bool = False,
) -> Group:
    """Return the group of `width` channels that modules put out and others take in.

    Args: produced: modules, the first of which names the group; as a mapping with how many chunks each puts out, all of
              `width` channels.
          consumed: modules whose input the channels are.
          buffers, spread: as of `Group`.
    """
    counts = produced if isinstance(produced, Mapping) else dict.fromkeys(produced, 1)
    chunks = {
        count: tuple((chunk * width + i, i) for chunk in range(count) for i in range(width))
        for count in {1, *counts.values()}
    }
    members = [Member(module, OUT, chunks[count]) for module, count in counts.items()]
    members += [Member(module, IN, chunks[1]) for module in consumed]
    return Group(members[0].module, width, tuple(members), buffers, spread)


def heads(width: int, attention: str, produced: Iterable[str] = QKV, consumed: Iterable[str] = ("to_out.0",)) -> Group:
    """Return the channels of one attention's heads, `width` in all."""
    return coupled(width, paths([attention], *produced), paths([attention], *consumed))


def feed_forward(width: int, layer: str, chunks: int = 1) -> Group:
    """Return the inner channels of one feed-forward layer in a stream of `width`; gated ones have two chunks."""
    return coupled(FEED_FORWARD * width, {f"{layer}.net.0.proj": chunks}, [f"{layer}.net.2"])


def example_sample(config: Config, batch_size: int, resolution: int | None, generator: torch.Generator) -> Tensor:
    """Return noise (B, C, S, S) from N(0, 1); S is the config's sample size when `resolution` is None."""
    side = resolution or config["sample_size"]
    return torch.randn(batch_size, config["in_channels"], side, side, generator=generator)


def example_timesteps(batch_size: int) -> Tensor:
    """Return timesteps (B,) float32, evenly spaced inside 0 to 999."""
    return torch.linspace(0, 999, batch_size + 2)[1:-1]


def _public(config: Config) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}
