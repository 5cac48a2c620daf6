"""The latency table: how long every kind of block takes at the widths that were measured, and so at any other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.optimize import nnls

from edgediff.artifacts import digest, read_result
from edgediff.errors import BadInputError, CorruptArtifactError, EdgeDiffError
from edgediff.families import Config
from edgediff.results import Result
from edgediff.validation import problems

TABLE_VERSION = 1
NEAR = 0.02  # squared distance, in logarithms of the work or the widths, within which two count as the same


class BlockTime(Result):
    """One block of one probe: its work (`blocks.Work`) and its part of the probe's step."""

    kind: str
    elements: float
    macs: float
    padded_macs: float  # as if every width were rounded up to the channels that a vector unit takes at a time
    ms: float


class Probe(Result):
    """One student of random weights that was measured, whole and block by block; the first is the teacher's shape."""

    widths: dict[str, int]
    blocks_removed: list[str]
    params: int
    activation_bytes: int  # of the block that puts out most, for one image
    step_ms: float
    peak_memory_mib: float


class LatencyTable(Result):
    """A profile: what a device takes for the blocks of one teacher's students, at batch 1."""

    version: int = TABLE_VERSION
    teacher: str
    teacher_config: str  # digest of the config; tables of other shapes say nothing
    device: str
    backend: str
    threads: int
    clock: str
    sample_shape: tuple[int, int, int]  # C, H, W
    floor_mib: float  # peak memory of a process that runs an empty graph
    probes: list[Probe]
    blocks: list[BlockTime]

    @property
    def teacher_ms(self) -> float:
        """What a step of the teacher takes."""
        return self.probes[0].step_ms


def teacher_digest(config: Config) -> str:
    """Return what identifies the shape of a teacher, whatever its weights and whichever version saved it."""
    return digest({key: value for key, value in config.items() if not key.startswith("_")})


def read_table(path: Path, teacher: Config) -> LatencyTable:
    """Read the profile of this very teacher.

    Raises: BadInputError for a file that is missing, no profile, or another teacher's.
    """
    again = f"`edgediff profile --teacher … --out {path}` measures one, on the device"
    try:
        table = LatencyTable.model_validate(read_result(path))
    except ValidationError as error:
        raise BadInputError(f"not a profile: `{path}`: {problems(error, LatencyTable)[0]}", again) from error
    except CorruptArtifactError as error:
        raise BadInputError(f"not a profile: `{path}`", again) from error
    except EdgeDiffError as error:
        raise BadInputError(f"profile not found: `{path}`", again) from error
    if table.teacher_config != teacher_digest(teacher):
        raise BadInputError(
            f"profile is of another teacher, {table.teacher}: `{path}`", "measure this one with `edgediff profile`"
        )
    return table


class Predictor:
    """Blocks → their milliseconds on the table's device.

    Of every kind, time = a + b elements + c MACs + d padded MACs with a, b, c, d >= 0, fitted to the relative error;
    then corrected by how far the fit is off at the nearest measured blocks, so that those themselves are hit.
    """

    def __init__(self, blocks: Iterable[BlockTime]) -> None:
        """Fit the measured blocks."""
        rows: dict[str, list[BlockTime]] = defaultdict(list)
        for block in blocks:
            rows[block.kind].append(block)
        self.kinds = {kind: _Kind(measured) for kind, measured in rows.items()}

    def __call__(self, kind: str, work: NDArray[np.float64]) -> float:
        """Return the time of a block whose work is (elements, MACs, padded MACs).

        Raises: BadInputError for a kind that was not measured.
        """
        if kind not in self.kinds:
            raise BadInputError(
                f"profile lacks a kind of block: {kind}", "measure this teacher with `edgediff profile`"
            )
        return self.kinds[kind](work)


class _Kind:
    def __init__(self, blocks: list[BlockTime]) -> None:
        self.work = np.array([[row.elements, row.macs, row.padded_macs] for row in blocks])
        times = np.array([row.ms for row in blocks])
        matrix = np.column_stack([np.ones(len(blocks)), self.work])
        scale = matrix.max(0).clip(1.0)
        coefficients, _ = nnls(matrix / scale / times[:, None], np.ones(len(blocks)))
        self.coefficients = coefficients / scale
        self.errors = times / (matrix @ self.coefficients)
        self.known: dict[bytes, float] = {}  # most blocks of two students that a search compares are the same

    def __call__(self, work: NDArray[np.float64]) -> float:
        key = work.tobytes()
        if key not in self.known:
            self.known[key] = self._predicted(work)
        return self.known[key]

    def _predicted(self, work: NDArray[np.float64]) -> float:
        fitted = float(self.coefficients[0] + self.coefficients[1:] @ work)
        distances = ((np.log1p(self.work) - np.log1p(work)) ** 2).sum(1)
        return fitted * nearest(distances, self.errors)


def nearest(distances: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Return the mean of `values` (N,), of which those at small squared `distances` (N,) count most.

    The plain mean, not the geometric one: what is added up in the end are times, and blocks of equal work whose times
    differ would come out too short together.
    """
    weights = (distances + NEAR) ** -2
    return float(weights @ values / weights.sum())


class Memory:
    """Weights and activations → megabytes that a process needs at its peak to run one image in ONNX Runtime.

    Peak = what it takes without a model + a weights + b activations of the largest block, a, b >= 0, over the probes.
    """

    def __init__(self, table: LatencyTable) -> None:
        """Fit the probes."""
        matrix = np.array([[4.0 * probe.params, probe.activation_bytes] for probe in table.probes])
        own = np.array([(probe.peak_memory_mib - table.floor_mib) * 2**20 for probe in table.probes])
        self.floor = table.floor_mib * 2**20
        scale = matrix.max(0)
        self.coefficients = nnls(matrix / scale, own.clip(0))[0] / scale

    def __call__(self, params: float, activation_bytes: float) -> float:
        """Return MB (10⁶ bytes) for float32 weights and the activations of one image."""
        return (self.floor + float(self.coefficients @ [4.0 * params, activation_bytes])) / 1e6
