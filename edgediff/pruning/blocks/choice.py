"""Which blocks go: from importances and a target to blocks that a stock model can lack together, or by a rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping

from edgediff.errors import BadInputError
from edgediff.families import Config, DepthCut, Family
from edgediff.metrics.cost import model_cost, parameter_count
from edgediff.pruning.blocks.methods import BLOCK_MEASURES, BlockImportance
from edgediff.pruning.blocks.probe import BlockProbe
from edgediff.recipe import DepthConfig


def removal_count(family: Family, config: Config, target: DepthConfig) -> int:
    """Return how many blocks `remove` or `keep` takes away; 0 for a budget, whose blocks are counted as they go.

    Raises: BadInputError for a share that rounds to no block, and for more blocks to keep than there are.
    """
    total = len(family.blocks(config))
    if target.keep is not None:
        if target.keep > total:
            raise BadInputError(f"more blocks to keep than this teacher can lose: {target.keep}", f"it has {total}")
        return total - target.keep
    if target.remove is None:
        return 0
    count = math.floor(total * target.remove + 0.5)
    if target.remove > 0 and count == 0:
        raise BadInputError(
            f"removing {target.remove:g} of {total} blocks removes none", f"nearest: {_share(1, total)}"
        )
    return count


def choose_blocks(family: Family, config: Config, target: DepthConfig, importance: BlockImportance) -> tuple[str, ...]:
    """Return the blocks that go, in the order in which they run: the least important that meet the target.

    Blocks are taken one by one. One that no stock model can lack beside those already taken is passed over, and one
    that lies inside another that went has gone with it, and counts.

    Args: importance: of every block (`methods`). target: `remove`, `keep`, `params` or `macs`.
    Raises: BadInputError for a target that no stock model can meet, with the nearest that one can.
    """
    if target.params is not None or target.macs is not None:
        chosen = _within_budget(family, config, target, importance)
    else:
        chosen = _as_many(family, config, target, importance)
    return tuple(block for block in family.blocks(config) if block in chosen)


def published_cut(family: Family, config: Config, rule: str) -> DepthCut:
    """Return the cut of a published rule.

    Raises: BadInputError for a rule that does not fit this teacher, naming those that do.
    """
    rules = family.depth_rules(config)
    if rule not in rules:
        fitting = f"rules that do: {', '.join(rules)}" if rules else "no published rule does: give `remove` or `keep`"
        raise BadInputError(f"depth rule does not fit this teacher: {rule}", fitting)
    return rules[rule](config)


def foreseen_cut(family: Family, config: Config, target: DepthConfig, seed: int) -> DepthCut:
    """Return the cut as far as a config tells: the blocks themselves where the choice looks at no weights.

    Where it does, as many blocks spread evenly stand in for them; for a budget, the last ones that meet it.

    Raises: BadInputError for a target that no student of this teacher can meet.
    """
    if target.rule is not None:
        return published_cut(family, config, target.rule)
    if target.by not in BLOCK_MEASURES or BLOCK_MEASURES[target.by].looks_at != "config":
        counted = target.params is None and target.macs is None
        target = target.model_copy(update={"by": "evenly" if counted else "last"})
    probe = BlockProbe(family, config, count=removal_count(family, config, target), seed=seed)
    importance = BLOCK_MEASURES[target.by].measure(probe)
    return family.without_blocks(config, choose_blocks(family, config, target, importance))


def gone(blocks: Collection[str], removed: Collection[str]) -> set[str]:
    """Return those of the blocks of which nothing is left: removed, or inside what is."""
    lost = tuple(f"{module}." for block in removed for module in block.split("+"))
    return {block for block in blocks if all(f"{module}.".startswith(lost) for module in block.split("+"))}


def _as_many(family: Family, config: Config, target: DepthConfig, importance: BlockImportance) -> list[str]:
    """Remove the least important blocks until as many are gone as the target says."""
    count, total = removal_count(family, config, target), len(importance)
    rank = importance
    if BLOCK_MEASURES[target.by].per_cost:
        rank = {block: value / len(gone(importance, [block])) for block, value in importance.items()}
    *_, chosen = _removals(family, config, rank, lambda removed: len(gone(importance, removed)) <= count)
    reached = len(gone(importance, chosen))
    if reached < count:
        raise BadInputError(
            f"no student of this teacher lacks {count} of its {total} blocks", f"nearest: {_share(reached, total)}"
        )
    return chosen


def _within_budget(family: Family, config: Config, target: DepthConfig, importance: BlockImportance) -> list[str]:
    """Remove the least important blocks until the budget is met, then give back those that it turns out to have."""
    budget, unit = (target.params, "parameters") if target.params is not None else (target.macs, "MACs")
    assert budget is not None
    cost = _cost_of(family, config, unit)
    whole = cost([])
    rank = importance
    if BLOCK_MEASURES[target.by].per_cost:
        rank = {block: value / (whole - cost([block])) for block, value in importance.items()}
    for removed in _removals(family, config, rank):
        chosen, reached = removed, cost(removed)
        if reached <= budget:
            break
    if not reached <= budget <= whole:
        raise BadInputError(f"no student of this teacher has {budget:,} {unit}", f"reachable: {reached:,} to {whole:,}")
    for block in sorted(chosen, key=lambda block: -importance[block]):
        fewer = [other for other in chosen if other != block]
        if _exists(family, config, fewer) and cost(fewer) <= budget:
            chosen = fewer
    return chosen


def _removals(
    family: Family,
    config: Config,
    rank: Mapping[str, float],
    allowed: Callable[[list[str]], bool] = lambda removed: True,
) -> Iterator[list[str]]:
    """Yield ever more blocks to remove, the lowest in rank first, from none on to as many as can go together."""
    left = sorted(rank, key=lambda block: rank[block])  # stable: of equals, the first to run goes first
    removed: list[str] = []
    yield removed
    while block := next((b for b in left if allowed([*removed, b]) and _exists(family, config, [*removed, b])), None):
        removed = [*removed, block]
        lost = gone(left, removed)
        left = [block for block in left if block not in lost]
        yield removed


def _cost_of(family: Family, config: Config, unit: str) -> Callable[[Collection[str]], int]:
    def cost(removed: Collection[str]) -> int:
        student = family.without_blocks(config, removed).config
        if unit == "parameters":
            return parameter_count(family.build(student, "meta"))
        return model_cost(family, student).macs

    return cost


def _exists(family: Family, config: Config, removed: Collection[str]) -> bool:
    try:
        family.without_blocks(config, removed)
    except BadInputError:
        return False
    return True


def _share(count: int, total: int) -> str:
    return f"{count / total:.4g} ({count} of {total} blocks)"
