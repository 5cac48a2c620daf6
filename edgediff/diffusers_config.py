"""Stock diffusers objects made of configs that people write, whose mistakes diffusers itself would pass over."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from edgediff.errors import BadInputError, nearest


def from_config(kind: Any, config: Mapping[str, Any], key: str) -> Any:
    """Make a stock diffusers object of a config in a recipe, which diffusers itself reads with unknown keys left out.

    Raises: BadInputError, naming the recipe's `key`, for unknown keys and for values that the class refuses.
    """
    check_keys(kind, config, key)
    try:
        return kind.from_config(dict(config))
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        raise BadInputError(f"{key}: {kind.__name__} refuses it: {str(error).splitlines()[0]}") from error


def check_keys(kind: Any, config: Mapping[str, Any], key: str, not_yours: Collection[str] = ()) -> None:
    """Refuse what the constructor of `kind` does not take, and what is not the recipe's to decide.

    Raises: BadInputError, naming the recipe's `key`, with the nearest known key.
    """
    known = set(inspect.signature(kind.__init__).parameters) - {"self", *not_yours}
    unknown = [name for name in config if name not in known and not name.startswith("_")]
    if unknown:
        raise BadInputError("\n".join(f"{key}.{name}: unknown key, {nearest(name, known)}" for name in unknown))
