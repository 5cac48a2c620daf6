"""Depth of U-Nets: which layers and transformer blocks can go, and the stock config of the rest.

A layer is a residual block and the attention behind it, where the level has attention; an attention holds one or more
transformer blocks. An up block has a layer more than the down block of its level: its first takes in the level below,
its last the skip of the level above. These two stay, and so does the first layer of a down block, where the width
changes. The layers between them all have one shape. A stock config says one number for down and up, so layer k of L on
the way down goes together with layer L - k on the way up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgediff.families.base import Config, DepthCut

TRANSFORMERS = frozenset({"CrossAttnDownBlock2D", "CrossAttnUpBlock2D"})
ATTENTION = TRANSFORMERS | {"AttnDownBlock2D", "AttnUpBlock2D"}
MIDDLE, MIDDLE_TRANSFORMER, MIDDLE_RESIDUAL = "mid_block", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"
PER_LEVEL = ("block_out_channels", "down_block_types", "attention_head_dim", "only_cross_attention")


@dataclass(frozen=True)
class Layer:
    """A layer that stays.

    Args: index: its place in the teacher's block.
          parts: the module lists it is in: `resnets`, and `attentions` where it has one.
          transformers: the blocks that stay in its attention, by their places in the teacher's.
    """

    index: int
    parts: tuple[str, ...]
    transformers: tuple[int, ...]


@dataclass(frozen=True)
class Depth:
    """What stays of a teacher.

    Args: blocks: its down and up blocks by name, in the order in which they run, with the layers that stay.
          middle: the transformer blocks that stay in the middle block; None: there is no middle block. Without any
              transformer block a middle block that takes in text becomes a single residual block.
    """

    blocks: dict[str, tuple[Layer, ...]]
    middle: tuple[int, ...] | None

    def side(self, name: str) -> list[str]:
        """Return the blocks of `down_blocks` or `up_blocks`."""
        return [block for block in self.blocks if block.startswith(f"{name}.")]


def whole(config: Config) -> Depth:
    """Return the whole of a U-Net."""
    levels = len(config["down_block_types"])
    layers = _per_level(config["layers_per_block"], levels)
    down = _per_level(config.get("transformer_layers_per_block", 1), levels)
    up = config.get("reverse_transformer_layers_per_block") or down[::-1]
    blocks = {}
    for side, types, counts, depths in (
        ("down_blocks", config["down_block_types"], layers, down),
        ("up_blocks", config["up_block_types"], [count + 1 for count in layers[::-1]], up),
    ):
        for i in range(levels):
            parts = ("resnets", "attentions") if types[i] in ATTENTION else ("resnets",)
            blocks[f"{side}.{i}"] = tuple(
                Layer(k, parts, tuple(range(_entry(depths[i], k))) if types[i] in TRANSFORMERS else ())
                for k in range(counts[i])
            )
    if config["mid_block_type"] is None:
        return Depth(blocks, None)
    return Depth(blocks, tuple(range(_entry(down[-1], 0))) if config["mid_block_type"] == MIDDLE_TRANSFORMER else ())


def removable(config: Config, uniform: bool) -> tuple[str, ...]:
    """Return what can go, in any combination: layers, all transformer blocks of an attention but its first, the middle.

    The middle block has as many transformer blocks as the first attention of the lowest level, for which stock configs
    have one number, so theirs go together. A layer takes its transformer blocks with it.

    Args: uniform: whether the config says the number of layers once for all levels, so that these go together.
    """
    depth = whole(config)
    down, up = depth.side("down_blocks"), depth.side("up_blocks")
    units: dict[Any, list[str]] = {}  # what goes together, by what it shares

    def add(shared: Any, *modules: str) -> None:
        units.setdefault(shared, []).extend(modules)

    def add_transformers(block: str) -> None:
        for layer in depth.blocks[block]:
            for i in layer.transformers[1:]:
                add((block, layer.index, i), _transformer(block, layer.index, i))

    for block, mirrored in zip(down, up[::-1], strict=True):
        layers = depth.blocks[block]
        for layer in layers[1:]:
            above = depth.blocks[mirrored][len(layers) - layer.index]
            modules = [f"{block}.{part}.{layer.index}" for part in layer.parts]
            modules += [f"{mirrored}.{part}.{above.index}" for part in above.parts]
            add(layer.index if uniform else (block, layer.index), *modules)
        add_transformers(block)
    if depth.middle is not None:
        for i in depth.middle[1:]:
            add((down[-1], 0, i), _transformer(MIDDLE, 0, i))
        add(MIDDLE, MIDDLE)
    for block in up:
        add_transformers(block)
    return tuple("+".join(modules) for modules in units.values())


def without(config: Config, removed: Collection[str]) -> DepthCut:
    """Return the stock model that lacks some of what is `removable`."""
    gone = {module for name in removed for module in name.split("+")}
    depth = whole(config)

    def stay(block: str, layer: int, transformers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i for i in transformers if _transformer(block, layer, i) not in gone)

    blocks = {
        block: tuple(
            replace(layer, transformers=stay(block, layer.index, layer.transformers))
            for layer in layers
            if f"{block}.resnets.{layer.index}" not in gone
        )
        for block, layers in depth.blocks.items()
    }
    middle = None if depth.middle is None or MIDDLE in gone else stay(MIDDLE, 0, depth.middle)
    return cut(config, Depth(blocks, middle))


def cut(config: Config, kept: Depth) -> DepthCut:
    """Return the stock model of what stays."""
    sources = {}
    for side in ("down_blocks", "up_blocks"):
        for at, block in enumerate(kept.side(side)):
            sources[f"{side}.{at}"] = block
            for k, layer in enumerate(kept.blocks[block]):
                sources |= {f"{side}.{at}.{part}.{k}": f"{block}.{part}.{layer.index}" for part in layer.parts}
                for to, i in enumerate(layer.transformers):
                    sources[_transformer(f"{side}.{at}", k, to)] = _transformer(block, layer.index, i)
    sources |= {_transformer(MIDDLE, 0, to): _transformer(MIDDLE, 0, i) for to, i in enumerate(kept.middle or ())}
    # The longest prefix counts, so a module whose own number stays follows what it is part of.
    moved = {to: of for to, of in sources.items() if to.rpartition(".")[2] != of.rpartition(".")[2]}
    return DepthCut(_student_config(config, kept), moved)


def _student_config(config: Config, kept: Depth) -> dict[str, Any]:
    down, up = kept.side("down_blocks"), kept.side("up_blocks")
    student = {key: value for key, value in config.items() if not key.startswith("_")}
    for key in PER_LEVEL:
        if isinstance(config.get(key), list | tuple):
            student[key] = tuple(config[key][_number(block)] for block in down)
    student["up_block_types"] = tuple(config["up_block_types"][_number(block)] for block in up)
    student["layers_per_block"] = _shared([len(kept.blocks[block]) for block in down])
    if kept.middle is None:
        student["mid_block_type"] = None
    elif not kept.middle:
        student["mid_block_type"] = MIDDLE_RESIDUAL
    if "transformer_layers_per_block" in config:
        student |= _transformer_layers(kept)
    return student


def _transformer_layers(kept: Depth) -> dict[str, Any]:
    """Return how many transformer blocks every attention has, in as few numbers as the stock config allows."""
    down, up = (
        [_shared([len(layer.transformers) for layer in kept.blocks[block]]) for block in kept.side(side)]
        for side in ("down_blocks", "up_blocks")
    )
    down[-1] = down[-1] or len(kept.middle or ())
    down = [count or 1 for count in down]  # a level without attention does not look at its number
    up = [count or mirrored for count, mirrored in zip(up, down[::-1], strict=True)]
    if up == down[::-1]:
        return {"transformer_layers_per_block": _shared(down), "reverse_transformer_layers_per_block": None}
    return {"transformer_layers_per_block": tuple(down), "reverse_transformer_layers_per_block": tuple(up)}


def _transformer(block: str, layer: int, index: int) -> str:
    return f"{block}.attentions.{layer}.transformer_blocks.{index}"


def _number(block: str) -> int:
    return int(block.rpartition(".")[2])


def _per_level(value: Any, levels: int) -> list[Any]:
    return [value] * levels if isinstance(value, int) else list(value)


def _entry(value: int | Sequence[int], index: int) -> int:
    return value if isinstance(value, int) else value[index]


def _shared(values: list[Any]) -> Any:
    """Return the one value of all, or all values."""
    return values[0] if all(value == values[0] for value in values) else tuple(values)
