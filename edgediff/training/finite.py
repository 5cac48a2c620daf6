"""Which tensors of a batch are not finite: whether it is a training that diverged, or what it learns from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def not_finite(batch: Any) -> list[str]:
    """Return the dotted names of the floating-point tensors in a batch that hold a value that is not finite.

    Args: batch: a tensor, whose name is "batch", or dataclasses, mappings and sequences of such.
    """
    return [name or "batch" for name, tensor in _tensors("", batch) if not bool(torch.isfinite(tensor).all())]


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
        return
    parts: Mapping[Any, Any] = {}
    if is_dataclass(value):
        parts = {of.name: getattr(value, of.name) for of in fields(value)}
    elif isinstance(value, Mapping):
        parts = value
    elif isinstance(value, Sequence) and not isinstance(value, str):
        parts = dict(enumerate(value))
    for key, part in parts.items():
        yield from _tensors(f"{name}.{key}" if name else str(key), part)
