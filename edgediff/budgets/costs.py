"""What any student of a teacher costs: parameters and MACs exactly, latency and memory as a profile predicts them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from edgediff.budgets.blocks import REST, lies_in, work
from edgediff.budgets.space import Polynomials, Space, Student
from edgediff.budgets.table import LatencyTable, Memory, Predictor, nearest, teacher_digest
from edgediff.families import Config
from edgediff.output import QUIET, Output

PADDED = 16  # channels that CPUs (AVX-512) and GPUs take at a time: a width costs what the next multiple does
FLOAT_BYTES = 4


class Works:
    """Student → the work of each of its blocks, from polynomials: no model is built.

    Attributes:
        names, kinds: of the teacher's blocks.
    """

    def __init__(self, space: Space, output: Output = QUIET) -> None:
        """Build as many students on `meta` as it takes."""
        found = work(space.family, space.config)
        self.names = list(found)
        self.kinds = [found[name].kind for name in self.names]

        def numbers(config: Config) -> NDArray[np.float64]:
            measured = work(space.family, config)
            rows = [[measured[name].elements, measured[name].macs, measured[name].params] for name in self.names]
            return np.array(rows, dtype=np.float64).flatten()

        self.polynomials = Polynomials(space, numbers, output)

    def staying(self, removed: Collection[str]) -> list[int]:
        """Return the places in `names` of the blocks that stay."""
        return [
            index
            for index, name in enumerate(self.names)
            if name == REST or not any(lies_in(name, block) for block in removed)
        ]

    def __call__(self, student: Student) -> NDArray[np.float64]:
        """Return (blocks that stay, 4): elements, MACs, MACs of padded widths, parameters."""
        own = self.polynomials(student.widths).reshape(len(self.names), 3)
        padded = self.polynomials([-(-width // PADDED) * PADDED for width in student.widths])
        rows = np.column_stack([own[:, :2], padded.reshape(len(self.names), 3)[:, 1], own[:, 2]])
        return rows[self.staying(student.removed)]


class CostModel:
    """Student → params, macs and, with a profile, latency_ms of a step and memory_mb, both at batch 1."""

    def __init__(
        self,
        space: Space,
        table: LatencyTable | None = None,
        output: Output = QUIET,
        measured: Mapping[Student, float] | None = None,
    ) -> None:
        """Take the profile of this very teacher, where there is one, and students measured beside it, in ms a step."""
        self.works = Works(space, output)
        self.latency = Latency(space, self.works, table, measured or {}) if table else None
        self.memory = Memory(table) if table else None

    def __call__(self, student: Student) -> dict[str, float]:
        """Return every quantity that is known."""
        rows = self.works(student)
        # Rounded: the polynomials of whole numbers are whole numbers.
        costs = {"params": float(np.rint(rows[:, 3].sum())), "macs": float(np.rint(rows[:, 1].sum()))}
        if self.latency is not None and self.memory is not None:
            costs["latency_ms"] = self.latency(student, rows)
            costs["memory_mb"] = self.memory(costs["params"], FLOAT_BYTES * float(rows[:, 0].max()))
        return costs


class Latency:
    """Student → milliseconds of a step: its blocks, corrected by how far their sum is off at the nearest known step."""

    def __init__(self, space: Space, works: Works, table: LatencyTable, measured: Mapping[Student, float]) -> None:
        """Sum up the blocks of every student whose step is known as a whole."""
        self.works, self.predict = works, Predictor(table.blocks)
        known = dict(measured)
        if teacher_digest(space.config) == table.teacher_config:  # and not a cut of it, whose students are others
            for probe in table.probes:
                widths = tuple(probe.widths[axis[0]] for axis in space.axes)
                known.setdefault(Student(widths, frozenset(probe.blocks_removed)), probe.step_ms)
        self.places = [np.log(student.widths) for student in known]
        self.errors = np.array([ms / self._sum(student, works(student)) for student, ms in known.items()])

    def __call__(self, student: Student, rows: NDArray[np.float64]) -> float:
        """Return the latency of a student whose blocks' work is `rows`, as `Works` gives it."""
        total = self._sum(student, rows)
        if not self.places:
            return total
        distances = ((np.array(self.places) - np.log(student.widths)) ** 2).sum(1)
        return total * nearest(distances, self.errors)

    def _sum(self, student: Student, rows: NDArray[np.float64]) -> float:
        places = self.works.staying(student.removed)
        return sum(self.predict(self.works.kinds[place], row[:3]) for place, row in zip(places, rows, strict=True))
