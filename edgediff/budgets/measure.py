"""Measuring a profile: a handful of students of random weights, timed whole and block by block in ONNX Runtime.

Every student's graph is cut at its blocks. The whole, its blocks in their order and the teacher run in turns, so that
a block finds the caches as it would within the whole, and whatever slows the machine down slows all of them alike.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from ast import literal_eval
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from edgediff.artifacts import cpu_name
from edgediff.backends.memory import peak_memory_mib
from edgediff.backends.onnx_graph import tidy, write_graph
from edgediff.backends.onnxruntime import session_options
from edgediff.budgets.blocks import REST, block_of
from edgediff.budgets.costs import FLOAT_BYTES, Works
from edgediff.budgets.space import Space, Student
from edgediff.budgets.table import BlockTime, LatencyTable, Probe, teacher_digest
from edgediff.families import Config, Family
from edgediff.output import Output
from edgediff.pruning.depth import source_of
from edgediff.recipe import ExportConfig

SHARES = (1.0, 0.5, 0.25, 0.125)  # of all widths, in the students that are measured
BETWEEN = (0.75, 0.375)  # more, where there is a single axis
NARROW = 0.25  # of the other widths, where one axis is as wide as the teacher's
ROUNDS = (5, 40)  # at least, at most
SECONDS = 10.0  # of rounds for one student, where the fewest do not take longer
WARMUP = 3
PASSES = 2  # over all students, minutes apart where models are large

Feeds = Mapping[str, NDArray[Any]]
Run = tuple[onnxruntime.InferenceSession, Feeds]
Runs = dict[str, Run]
Name = TypeVar("Name", bound=str)
WHOLE, TEACHER, CALL = "whole", "teacher", "call"


def clock_of(threads: int) -> tuple[str, Callable[[], float]]:
    """Return the clock for so many threads: processor time of a single one, which other programs do not lengthen."""
    return ("processor time", time.thread_time) if threads == 1 else ("wall time", time.perf_counter)


def measure(family: Family, config: Config, teacher: str, threads: int, output: Output) -> LatencyTable:
    """Return the profile of a teacher's students on this machine.

    Args: config: the teacher's. teacher: what to call it.
    """
    space = Space(family, config, blocks=True)
    works = Works(space, output)
    students = probes(space, works)
    name, _ = clock_of(threads)
    passes: list[list[dict[str, float]]] = [[] for _ in students]
    with (
        tempfile.TemporaryDirectory() as folder,
        output.progress("profile", (1 + PASSES) * len(students)) as progress,
    ):
        graphs = [Path(folder) / str(index) / "model.onnx" for index in range(len(students))]
        feeds = []
        for student, graph in zip(students, graphs, strict=True):
            feeds.append(_export(family, space.student_config(student), graph))
            progress.advance(note=f"exported {_named(student)}")
        empty = _empty_graph(Path(folder) / "empty.onnx")
        others: Runs = {
            TEACHER: load(graphs[0], feeds[0], threads),
            CALL: load(empty, {"x": np.zeros((1, 1), np.float32)}, threads),
        }
        for _ in range(PASSES):
            for student, graph, inputs, taken in zip(students, graphs, feeds, passes, strict=True):
                runs = {**_cut(family, graph, inputs, threads), **others}
                taken.append({key: undisturbed(times) for key, times in side_by_side(runs, threads).items()})
                progress.advance(note=f"measured {_named(student)}")
        del others, runs
        peaks = []
        for graph in graphs:
            tidy(graph)
            peaks.append(peak_memory_mib("onnxruntime", graph, batch_size=1, threads=threads))
        floor = peak_memory_mib("onnxruntime", empty, batch_size=1, threads=threads)
    # Of the passes over a student, the least disturbed one counts.
    calm = [min(taken, key=lambda times: sum(times.values())) for taken in passes]
    teacher_ms = statistics.median(times[TEACHER] for times in calm)
    steps = [1.0, *(times[WHOLE] / times[TEACHER] for times in calm[1:])]  # shares of the teacher's; the first is it
    return LatencyTable(
        teacher=teacher,
        teacher_config=teacher_digest(config),
        device=cpu_name(),
        backend="onnxruntime",
        threads=threads,
        clock=name,
        sample_shape=family.sample_shape(config),
        floor_mib=floor,
        probes=[
            _probe(space, works, student, step * teacher_ms, peak)
            for student, step, peak in zip(students, steps, peaks, strict=True)
        ],
        blocks=[
            row
            for student, step, times in zip(students, steps, calm, strict=True)
            for row in _rows(space, works, student, step * teacher_ms, times)
        ],
    )


@contextmanager
def beside(family: Family, teacher_config: Config, threads: int) -> Iterator[Callable[[Config], float]]:
    """Give what measures a student's config: its step as a share of the teacher's, both timed in turns.

    Both have random weights, which change no latency.
    """
    with tempfile.TemporaryDirectory() as folder:

        def exported(config: Config, name: str) -> Run:
            graph = Path(folder) / name / "model.onnx"
            return load(graph, _export(family, config, graph), threads)

        reference, numbers = exported(teacher_config, TEACHER), itertools.count()

        def share(config: Config) -> float:
            runs = {WHOLE: exported(config, str(next(numbers))), TEACHER: reference}
            times = side_by_side(runs, threads)
            return statistics.median(own / whole for own, whole in zip(times[WHOLE], times[TEACHER], strict=True))

        yield share


def probes(space: Space, works: Works) -> list[Student]:
    """Return the students to measure: the teacher, narrower ones, and those of which one axis alone stays wide.

    All but the teacher lack the blocks that say nothing new. Of every kind two are left where there are as many: the
    first of a row finds colder caches than those after it, and they are what a deep model consists of.
    """
    many = len(space.axes) > 1
    wanted = [[share] * len(space.axes) for share in (*SHARES, *(() if many else BETWEEN))]
    if many:
        wanted += [[1.0 if i == wide else NARROW for i in range(len(space.axes))] for wide in range(len(space.axes))]
    candidates, shorter = space.spread(), _shorter(space, works)
    found = [space.teacher]
    for shares in wanted[1:]:

        def distance(student: Student, shares: list[float] = shares) -> float:
            pairs = zip(student.widths, space.teacher.widths, shares, strict=True)
            return sum(math.log(width / (whole * share)) ** 2 for width, whole, share in pairs)

        student = Student(min(candidates, key=distance).widths, shorter)
        if student not in found and space.exists(student):
            found.append(student)
    return found


def side_by_side(runs: Mapping[Name, Run], threads: int) -> dict[Name, list[float]]:
    """Return milliseconds of every run in each round; a round runs each of them once, in order."""
    _, clock = clock_of(threads)
    taken: dict[Name, list[float]] = {key: [] for key in runs}
    began, done = time.monotonic(), 0
    while done < WARMUP + ROUNDS[0] or (done < WARMUP + ROUNDS[1] and time.monotonic() - began < SECONDS):
        for key, (session, feeds) in runs.items():
            start = clock()
            session.run(None, feeds)
            taken[key].append(1000 * (clock() - start))
        done += 1
    return {key: times[WARMUP:] for key, times in taken.items()}


def undisturbed(times: Sequence[float]) -> float:
    """Return the lower quartile: whatever else goes on can only lengthen a run, and hits short ones less often."""
    return statistics.quantiles(times, n=4)[0]


def load(graph: Path, feeds: Feeds, threads: int) -> Run:
    """Return an exported graph, ready to be timed on these inputs."""
    return _session(str(graph), threads), feeds


def feeds_of(family: Family, config: Config) -> Feeds:
    """Return the inputs of an exported graph for one image."""
    inputs = family.example_inputs(config)
    return {name: inputs[name].numpy() for name in family.input_names(config)}


def _export(family: Family, config: Config, graph: Path) -> Feeds:
    """Write the graph of a model of random weights into a folder of its own; return its inputs for one image."""
    graph.parent.mkdir()
    built = family.build(config).eval()
    write_graph(built, family, graph, ExportConfig().opset)
    return feeds_of(family, built.config)


def _shorter(space: Space, works: Works) -> frozenset[str]:
    removed: frozenset[str] = frozenset()
    for block in reversed(space.blocks):
        more = Student(space.teacher.widths, removed | {block})
        left = Counter(works.kinds[place] for place in works.staying(more.removed))
        enough = all(left[kind] >= min(2, count) for kind, count in Counter(works.kinds).items())
        if enough and space.exists(more):
            removed = more.removed
    return removed


def _cut(family: Family, graph: Path, inputs: Feeds, threads: int) -> Runs:
    """Return sessions of a graph's blocks, in the order in which they run, and of the whole.

    The exporter notes for every node in which module it was made. Blocks are fed what they are given in the whole.
    """
    model = onnx.load(str(graph))
    nodes: dict[str, list[Any]] = defaultdict(list)
    for node in model.graph.node:
        nodes[_block_of_node(family, node)].append(node)
    weights = {weight.name: weight for weight in model.graph.initializer}
    readers: dict[str, set[str]] = defaultdict(set)
    for block, own in nodes.items():
        for node in own:
            for name in node.input:
                readers[name].add(block)
    results = {value.name for value in model.graph.output}
    taken: dict[str, list[str]] = {}
    for block, own in nodes.items():
        made = {name for node in own for name in node.output}
        given = dict.fromkeys(name for node in own for name in node.input if name)
        taken[block] = [name for name in given if name not in made and name not in weights]
    values = _values(graph, sorted({name for names in taken.values() for name in names} - set(inputs)), inputs, threads)
    runs: Runs = {WHOLE: load(graph, inputs, threads)}
    for block, own in sorted(nodes.items(), key=lambda item: item[0] == REST):
        put_out = [name for node in own for name in node.output if readers[name] - {block} or name in results]
        used = dict.fromkeys(name for node in own for name in node.input if name in weights)
        piece = helper.make_model(
            helper.make_graph(
                own,
                "block",
                [_input(name, values[name]) for name in taken[block]],
                [onnx.ValueInfoProto(name=name) for name in put_out],
                [weights[name] for name in used],
            ),
            opset_imports=model.opset_import,
            ir_version=model.ir_version,
        )
        session = _session(piece.SerializeToString(), threads)
        runs[block] = (session, {name: values[name] for name in taken[block]})
    return runs


def _block_of_node(family: Family, node: Any) -> str:
    notes = {note.key: note.value for note in node.metadata_props}
    scopes = literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
    return max((block_of(family, scope.removeprefix("model.")) for scope in scopes), key=len, default=REST)


def _values(graph: Path, names: list[str], inputs: Feeds, threads: int) -> dict[str, NDArray[Any]]:
    """Return what values inside a graph are for these inputs."""
    model = onnx.load(str(graph), load_external_data=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    tapped = graph.with_name("tapped.onnx")  # beside it, where its external data are
    tapped.write_bytes(model.SerializeToString())
    return {**inputs, **dict(zip(names, _session(str(tapped), threads).run(names, dict(inputs)), strict=True))}


def _input(name: str, value: NDArray[Any]) -> Any:
    shape = ["batch", *value.shape[1:]] if value.ndim else []  # dynamic, as in the whole
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)


def _session(model: str | bytes, threads: int) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])


def _empty_graph(path: Path) -> Path:
    value, same = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", [value], [same])
    imports = [helper.make_opsetid("", ExportConfig().opset)]
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())
    return path


def _rows(space: Space, works: Works, student: Student, step_ms: float, times: Mapping[str, float]) -> list[BlockTime]:
    """Return the blocks with their parts of the step, which calls the runtime once and not once a block.

    The one call is counted to what lies between the blocks: a student has it once, however many blocks it has.
    """
    cut, call = space.cut(student), times[CALL] * step_ms / times[WHOLE]
    own = {source_of(key, cut): value for key, value in times.items() if key not in (WHOLE, TEACHER, CALL)}
    # A block that takes little more than a call must still take something.
    alone = {block: max(value - times[CALL], times[CALL] / 10) for block, value in own.items()}
    total, rows = sum(alone.values()), []
    for place, (elements, macs, padded, _) in zip(works.staying(student.removed), works(student), strict=True):
        ms = (step_ms - call) * alone[works.names[place]] / total + (call if works.names[place] == REST else 0)
        rows.append(BlockTime(kind=works.kinds[place], elements=elements, macs=macs, padded_macs=padded, ms=ms))
    return rows


def _probe(space: Space, works: Works, student: Student, step_ms: float, peak: float) -> Probe:
    rows = works(student)
    return Probe(
        widths=space.widths(student),
        blocks_removed=sorted(student.removed),
        params=round(rows[:, 3].sum()),
        activation_bytes=round(FLOAT_BYTES * rows[:, 0].max()),
        step_ms=step_ms,
        peak_memory_mib=peak,
    )


def _named(student: Student) -> str:
    return ", ".join(map(str, student.widths))
