"""How wide the student of a pruning ratio is, and the students that one ratio for all levels can give."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgediff.errors import BadInputError, StageFailedError
from edgediff.families import Config, Family, Widths
from edgediff.metrics.cost import parameter_count

ROUNDING = 1e-9  # keeps a ratio computed to lie on the border of a rounding step on its side of it


def widths_for_ratio(family: Family, config: Config, ratio: float) -> Widths:
    """Return the widths that remove the share `ratio` of every level's channels, to the nearest granularity.

    Args: config: the teacher's. ratio: fraction of channels removed, in [0, 1).

    Raises: BadInputError for a ratio out of range, and for one that leaves a level without channels or gives widths
    no student can have; it names the level and the nearest ratios that work.
    """
    if not 0 <= ratio < 1:
        raise BadInputError(
            f"pruning ratio must be in [0, 1): {ratio}", "0.5 removes half of the channels of every level"
        )
    widths = _rounded(family, config, ratio)
    try:
        for level, width in widths.items():
            if width == 0:
                raise BadInputError(f"pruning ratio {ratio:g} would leave {level} without channels")
        family.student_config(config, widths)
    except BadInputError as error:
        works = [highest for highest, _ in uniform_widths(family, config)]
        below = [f"{_floor(highest):g}" for highest in works if highest < ratio][-1:]
        above = [f"{_floor(highest):g}" for highest in works if highest > ratio][:1]
        near = f"nearest that work: {' and '.join(below + above)}"
        raise BadInputError(error.message, near if above else f"highest ratio that works: {below[0]}") from error
    return widths


def widths_in_order(family: Family, config: Config, widths: Sequence[int]) -> Widths:
    """Return the given widths by level, when a student of this teacher can have them.

    Raises: BadInputError for another number of levels, and what `Family.student_config` raises.
    """
    levels = family.levels(config)
    if len(widths) != len(levels):
        raise BadInputError(
            f"the model has {len(levels)} levels, widths has {len(widths)}",
            f"give them in this order: {_words(levels)}",
        )
    named = dict(zip(levels, widths, strict=True))
    family.student_config(config, named)
    return named


def check_reached(family: Family, teacher_config: Config, student_config: Config, ratio: float) -> None:
    """Check that a student lost what was asked for: silent under-pruning is the classic failure of width pruning.

    Raises: StageFailedError naming the level whose reached ratio is further from `ratio` than half a granularity step,
    or whose channels all stayed when no parameter was removed although `ratio` is above 0.
    """
    before, after = family.levels(teacher_config), family.levels(student_config)
    for level, step in family.granularity(teacher_config).items():
        reached = 1 - after[level] / before[level]
        if abs(reached - ratio) > 0.5 * step / before[level] + ROUNDING:
            raise StageFailedError(
                f"pruning ratio of {level} is {reached:.4g}, asked: {ratio:g}",
                f"{after[level]} of {before[level]} channels stayed, in steps of {step}",
            )
    params_before = _count(family, teacher_config)
    params_after = _count(family, student_config)
    if ratio > 0 and params_after >= params_before:
        whole = ", ".join(level for level in before if after[level] == before[level])
        raise StageFailedError(
            f"pruning ratio {ratio:g} removed no parameters, all channels stayed in {whole}",
            f"use a ratio above {uniform_widths(family, teacher_config)[0][0]:.4g}",
        )


def _rounded(family: Family, config: Config, ratio: float) -> Widths:
    steps = family.granularity(config)
    return {
        level: steps[level] * math.floor(width * (1 - ratio) / steps[level] + 0.5 + ROUNDING)
        for level, width in family.levels(config).items()
    }


def uniform_widths(family: Family, config: Config) -> list[tuple[float, Widths]]:
    """Return every set of widths a uniform ratio can give, widest first, each with the highest ratio that gives it.

    A level of n steps' width changes where width · (1 − ratio) crosses n − 1/2 steps, so those ratios visit them all.
    """
    levels, steps = family.levels(config), family.granularity(config)
    borders = {
        1 - (n - 0.5) * step / levels[level]
        for level, step in steps.items()
        for n in range(1, levels[level] // step + 1)
    }
    found: dict[tuple[int, ...], tuple[float, Widths]] = {}
    for ratio in sorted(borders):
        widths = _rounded(family, config, ratio)
        if _exists(family, config, widths):
            found[tuple(widths.values())] = (ratio, widths)
    return list(found.values())


def _exists(family: Family, config: Config, widths: Widths) -> bool:
    try:
        family.student_config(config, widths)
    except BadInputError:
        return False
    return True


def _count(family: Family, config: Config) -> int:
    return parameter_count(family.build(config, "meta"))


def _words(levels: Widths) -> str:
    return ", ".join(f"{level} ({width})" for level, width in levels.items())


def _floor(ratio: float) -> float:
    return math.floor(ratio * 1e4) / 1e4
