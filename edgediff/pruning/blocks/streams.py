"""The residual streams that run through a block: what it was given and what it gave back, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

Combine = Callable[[Tensor, Tensor], Tensor]
"""(before, after) of one stream → what takes the place of `after`."""


def map_streams(combine: Combine, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> Any:
    """Return a block's output with every residual stream replaced by `combine(before, after)`.

    For forward hooks with keyword arguments. diffusers' blocks take `hidden_states` first and return them, alone or in
    a tuple of one; joint blocks return the text's stream in front of them, which the last one ends (None).
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    if isinstance(output, Tensor):
        return combine(hidden, output)
    *others, after = output
    if not others:
        return (combine(hidden, after),)
    (text,) = others
    return (None if text is None else combine(kwargs["encoder_hidden_states"], text), combine(hidden, after))
