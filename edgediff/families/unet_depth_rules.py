"""Published depth cuts of text-to-image U-Nets: which parts of the teacher stay, as data.

Every rule takes a config and returns the cut. Raises: BadInputError for U-Nets of another depth than it was made for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edgediff.errors import BadInputError
from edgediff.families.base import Config, DepthCut
from edgediff.families.unet_depth import MIDDLE_TRANSFORMER, Depth, cut, whole

STABLE_DIFFUSION = whole(
    {
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "mid_block_type": MIDDLE_TRANSFORMER,
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }
)
STABLE_DIFFUSION_XL = whole(
    {
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "mid_block_type": MIDDLE_TRANSFORMER,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "transformer_layers_per_block": (1, 2, 10),
    }
)


def bk_base(config: Config) -> DepthCut:
    """Return BK-SDM-Base (Kim et al. 2023): one layer down, the first, and two up, the first and the last.

    For Stable Diffusion 1 and 2.
    """
    return cut(config, _one_layer_less(_of(config, STABLE_DIFFUSION)))


def bk_small(config: Config) -> DepthCut:
    """Return BK-SDM-Small (Kim et al. 2023): Base without the middle block."""
    return cut(config, replace(_one_layer_less(_of(config, STABLE_DIFFUSION)), middle=None))


def bk_tiny(config: Config) -> DepthCut:
    """Return BK-SDM-Tiny (Kim et al. 2023): Small without the lowest level.

    Raises: BadInputError also when the two lowest levels differ in width.
    """
    kept = _one_layer_less(_of(config, STABLE_DIFFUSION))
    lowest, above = config["block_out_channels"][:-3:-1]
    if lowest != above:
        raise BadInputError(f"bk_tiny needs two lowest levels of one width: {above}, {lowest}")
    blocks = {name: layers for name, layers in kept.blocks.items() if name not in ("down_blocks.3", "up_blocks.0")}
    return cut(config, Depth(blocks, None))


def ssd_1b(config: Config) -> DepthCut:
    """Return SSD-1B (Gupta et al. 2024): fewer transformer blocks, and a single residual block in the middle.

    For Stable Diffusion XL. How many stay is the published model's config. Which ones was never published: these are
    the teacher's blocks to which its weights are most similar, as measured for furusu/SSD-1B-anime.
    """
    depth = _of(config, STABLE_DIFFUSION_XL)
    four = (0, 1, 2, 6)
    stay = {
        "down_blocks.2": (four, four),
        "up_blocks.0": (four, four, tuple(range(10))),
        "up_blocks.1": ((0, 1), (0,), (0,)),
    }
    blocks = {
        name: tuple(replace(layer, transformers=kept) for layer, kept in zip(layers, stay[name], strict=True))
        if name in stay
        else layers
        for name, layers in depth.blocks.items()
    }
    return cut(config, Depth(blocks, ()))


def koala_1b(config: Config) -> DepthCut:
    """Return KOALA-1B (Lee et al. 2023): the layers of BK-SDM-Base, and 6 transformer blocks where the teacher has 10.

    For Stable Diffusion XL. The published config says how many stay; the first ones do here.
    """
    return cut(config, _first_transformers(_one_layer_less(_of(config, STABLE_DIFFUSION_XL)), 6))


def koala_700m(config: Config) -> DepthCut:
    """Return KOALA-700M (Lee et al. 2023): `koala_1b` with 5 transformer blocks and without the middle block."""
    kept = _first_transformers(_one_layer_less(_of(config, STABLE_DIFFUSION_XL)), 5)
    return cut(config, replace(kept, middle=None))


RULES: dict[str, Callable[[Config], DepthCut]] = {
    rule.__name__: rule for rule in (bk_base, bk_small, bk_tiny, ssd_1b, koala_1b, koala_700m)
}


def fitting_rules(config: Config) -> dict[str, Callable[[Config], DepthCut]]:
    """Return the published cuts that are made for this U-Net."""
    return {name: rule for name, rule in RULES.items() if _fits(rule, config)}


def _fits(rule: Callable[[Config], DepthCut], config: Config) -> bool:
    try:
        rule(config)
    except BadInputError:
        return False
    return True


def _of(config: Config, teacher: Depth) -> Depth:
    depth = whole(config)
    if depth != teacher:
        raise BadInputError(
            "the cut is made for U-Nets of another depth", "choose blocks by an importance, or a rule that fits"
        )
    return depth


def _one_layer_less(depth: Depth) -> Depth:
    down, up = depth.side("down_blocks"), depth.side("up_blocks")
    first = {name: depth.blocks[name][:1] for name in down}
    return replace(depth, blocks=first | {name: (depth.blocks[name][0], depth.blocks[name][-1]) for name in up})


def _first_transformers(depth: Depth, count: int) -> Depth:
    blocks = {
        name: tuple(replace(layer, transformers=layer.transformers[:count]) for layer in layers)
        for name, layers in depth.blocks.items()
    }
    return Depth(blocks, depth.middle and depth.middle[:count])
