"""Depth pruning: the kept blocks of a teacher, copied into a freshly built stock model of fewer blocks.

The family says which stock model lacks a block and where its tensors come from; which blocks go is chosen elsewhere
(`blocks`, `learned_depth`, or a published rule). As with width, nothing is cut in place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from edgediff.families import DepthCut, Family
from edgediff.metrics.cost import parameter_bytes, parameter_count


@dataclass(frozen=True)
class DepthReport:
    """What depth pruning removed, measured on the two models.

    Attributes:
        kept, removed: removable blocks of the teacher, in the order in which they run; removed: nothing of them stayed.
        params_before, params: number of parameters.
        bytes_before, bytes: size of the parameters in the teacher's precision.
    """

    kept: tuple[str, ...]
    removed: tuple[str, ...]
    params_before: int
    params: int
    bytes_before: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, for the manifest."""
        return asdict(self)


def prune_depth(model: ModelMixin, family: Family, cut: DepthCut) -> tuple[ModelMixin, DepthReport]:
    """Return the stock model of a cut, filled with exact copies of the model's weights, and what was removed.

    The model is left untouched; the student has its dtype, device and mode.

    Args: cut: of this model's config, from `Family.without_blocks` or a published rule.
    """
    student = _filled(model, family, cut, torch.clone)
    used = {source_of(name, cut) for name in student.state_dict()}
    blocks = family.blocks(model.config)
    kept = tuple(block for block in blocks if any(_belongs(name, block) for name in used))
    report = DepthReport(
        kept=kept,
        removed=tuple(block for block in blocks if block not in kept),
        params_before=parameter_count(model),
        params=parameter_count(student),
        bytes_before=parameter_bytes(model),
        bytes=parameter_bytes(student),
    )
    return student, report


def without(model: ModelMixin, family: Family, removed: Collection[str]) -> ModelMixin:
    """Return the stock model that lacks these blocks, to be looked at only: it shares its weights with `model`.

    Raises: BadInputError for a choice that no stock config can express.
    """
    return _filled(model, family, family.without_blocks(model.config, removed), lambda value: value)


def _filled(model: ModelMixin, family: Family, cut: DepthCut, take: Callable[[Tensor], Tensor]) -> ModelMixin:
    with torch.random.fork_rng(devices=[]):  # fresh weights, all replaced, must not cost the caller's random state
        student = family.build(cut.config, model.device)
    teacher = model.state_dict()
    sources = {name: source_of(name, cut) for name in student.state_dict()}
    weights = {name: take(teacher[source]) for name, source in sources.items() if source in teacher}
    # strict: a tensor without a source, or of another shape than the stock one, must not pass.
    student.load_state_dict(weights, strict=True, assign=True)
    return student.train(model.training)


def source_of(name: str, cut: DepthCut) -> str:
    """Return the teacher's name of a student's tensor; of several prefixes that fit, the longest counts."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in cut.sources:
            return ".".join((cut.sources[prefix], *parts[length:]))
    return name


def _belongs(name: str, block: str) -> bool:
    return any(name.startswith(f"{module}.") for module in block.split("+"))
