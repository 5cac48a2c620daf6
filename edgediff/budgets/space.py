"""The students that a search walks: a width for every level, and blocks that go; each of them a stock config."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgediff.errors import BadInputError
from edgediff.families import Config, DepthCut, Family, Widths
from edgediff.output import Output
from edgediff.pruning.blocks.choice import gone

SAMPLED = 400  # students among which those that determine a polynomial are looked for


@dataclass(frozen=True)
class Student:
    """A point of the space.

    Args: widths: channels on every axis. removed: blocks that go.
    """

    widths: tuple[int, ...]
    removed: frozenset[str] = frozenset()


class Space:
    """The students of one teacher.

    Attributes:
        axes: the levels on every axis, which have one width (`Family.axes`).
        choices: the widths on every axis, ascending; not every combination exists.
        blocks: those that can go.
    """

    def __init__(self, family: Family, config: Config, *, blocks: bool) -> None:
        """Take a teacher's config; `blocks`: whether blocks may go too.

        Raises: BadInputError for a teacher that cannot be pruned.
        """
        self.family, self.config = family, config
        levels, steps = family.levels(config), family.granularity(config)
        self.axes = family.axes(config)
        self.choices = [range(steps[axis[0]], levels[axis[0]] + 1, steps[axis[0]]) for axis in self.axes]
        self.blocks = family.blocks(config) if blocks else ()
        self.teacher = Student(tuple(choices[-1] for choices in self.choices))
        self.exists = cache(self._exists)

    def widths(self, student: Student) -> Widths:
        """Return the channels of every level."""
        return {level: width for axis, width in zip(self.axes, student.widths, strict=True) for level in axis}

    def cut(self, student: Student) -> DepthCut:
        """Return the stock model without the student's removed blocks, as wide as the teacher."""
        return self.family.without_blocks(self.config, student.removed)

    def student_config(self, student: Student) -> dict[str, object]:
        """Return the stock config. Raises: BadInputError for a student that does not exist."""
        shallow = self.cut(student).config if student.removed else self.config
        return self.family.student_config(shallow, self.widths(student))

    def smaller(self, student: Student) -> Iterator[Student]:
        """Yield the students that are one step smaller: an axis at its next width that exists, or a block less."""
        for axis in range(len(self.axes)):
            yield from itertools.islice(self._at(student, axis, reversed(self._below(student, axis))), 1)
        left = set(self.blocks) - gone(self.blocks, student.removed)
        for block in self.blocks:
            fewer = replace(student, removed=student.removed | {block})
            if block in left and self.exists(fewer):
                yield fewer

    def larger(self, student: Student) -> Iterator[Student]:
        """Yield the students that are one step larger: an axis at its next width that exists, or a block more."""
        for axis, choices in enumerate(self.choices):
            above = choices[choices.index(student.widths[axis]) + 1 :]
            yield from itertools.islice(self._at(student, axis, above), 1)
        for block in sorted(student.removed):
            more = replace(student, removed=student.removed - {block})
            if self.exists(more):
                yield more

    def spread(self) -> list[Student]:
        """Return existing students of all blocks, spread over the widths, the teacher first; the same at every call."""
        ends = [sorted({choices[0], choices[len(choices) // 2], choices[-1]}) for choices in self.choices]
        generator = random.Random(0)
        drawn = (tuple(generator.choice(choices) for choices in self.choices) for _ in range(SAMPLED))
        candidates = dict.fromkeys([self.teacher.widths, *itertools.product(*ends), *drawn])
        return [student for student in map(Student, candidates) if self.exists(student)]

    def _below(self, student: Student, axis: int) -> range:
        return self.choices[axis][: self.choices[axis].index(student.widths[axis])]

    def _at(self, student: Student, axis: int, widths: Sequence[int] | Iterator[int]) -> Iterator[Student]:
        for width in widths:
            other = replace(student, widths=(*student.widths[:axis], width, *student.widths[axis + 1 :]))
            if self.exists(other):
                yield other

    def _exists(self, student: Student) -> bool:
        try:
            self.student_config(student)
        except BadInputError:
            return False
        return True


class Polynomials:
    """Numbers that are polynomials of degree two in the widths, as MACs, values and parameters of a layer are.

    A handful of models on `meta` determine them; every other student's then cost no model at all.
    """

    def __init__(self, space: Space, numbers: Callable[[Config], NDArray[np.float64]], output: Output) -> None:
        """Ask for the `numbers` (N,) of as many students of all blocks as it takes."""
        self.scale = np.array(space.teacher.widths, dtype=np.float64)
        candidates = space.spread()
        left = np.array([self._monomials(student.widths) for student in candidates])
        chosen: list[Student] = []
        while (lengths := np.linalg.norm(left, axis=1)).max() > 1e-6:  # Gram-Schmidt: what the chosen do not span
            furthest = int(lengths.argmax())
            chosen.append(candidates[furthest])
            direction = left[furthest] / lengths[furthest]
            left -= np.outer(left @ direction, direction)
        matrix = np.array([self._monomials(student.widths) for student in chosen])
        values = []
        with output.progress("count work", len(chosen)) as progress:
            for student in chosen:
                values.append(numbers(space.student_config(student)))
                progress.advance()
        self.coefficients = np.linalg.lstsq(matrix, np.array(values), rcond=None)[0]

    def __call__(self, widths: Sequence[int]) -> NDArray[np.float64]:
        """Return the numbers (N,) at these widths, whether or not such a student exists."""
        return self._monomials(widths) @ self.coefficients

    def _monomials(self, widths: Sequence[int]) -> NDArray[np.float64]:
        shares = np.array([1.0, *(np.asarray(widths) / self.scale)])
        return np.array([a * b for a, b in itertools.combinations_with_replacement(shares, 2)])
