"""What each model family must say once: its width axes, inputs, prediction, ONNX names and pruning exceptions."""

from __future__ import annotations

from torch import nn

from edgediff.errors import BadInputError
from edgediff.families.base import Config, DepthCut, Family, Widths
from edgediff.families.coupling import Group, Member
from edgediff.families.dit import DiT
from edgediff.families.mmdit import MMDiT
from edgediff.families.unet2d import UNet2D
from edgediff.families.unet2d_condition import UNet2DCondition

__all__ = ["FAMILIES", "Config", "DepthCut", "Family", "Group", "Member", "Widths", "of"]

FAMILIES: dict[str, Family] = {family.class_name: family for family in (UNet2D(), UNet2DCondition(), DiT(), MMDiT())}


def of(model: nn.Module | type[nn.Module] | str) -> Family:
    """Return the family of a model, of its class, or of the `_class_name` that its config.json records.

    Raises: BadInputError, naming the supported classes, for any other class.
    """
    model_class = model if isinstance(model, str | type) else type(model)
    name = model_class if isinstance(model_class, str) else model_class.__name__
    if name not in FAMILIES:
        raise BadInputError(f"model class is not supported: {name}", f"supported: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
