"""The reproduction: LIFT/PLACE against its rivals on the embedded teacher, down to 1.6 % of its parameters.

    python benchmarks/extreme_compression.py run --work runs/extreme                 # every cell that has no line yet
    python benchmarks/extreme_compression.py run --work runs/extreme --only 'main/*' 'long/*'
    python benchmarks/extreme_compression.py frame                                  # the teacher, and real images
    python benchmarks/extreme_report.py                                             # tables and figures of all lines

A cell is one student: trained, drawn from with x0 clipped and not clipped in the sampler, scored. A finished cell is
one line of benchmarks/results/extreme-compression.jsonl; a cell that was stopped goes on from its checkpoint. Start it
once for every core: each takes the next cell that no other has. All cells of a set have equal steps, equal data and
noise in equal order, and share one cache of teacher targets; losses of feature maps have one of their own.
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from narrow_convolution import adopt
from PIL import Image
from safetensors.torch import load_file, save_file

from edgediff import model_folder, samples, teacher
from edgediff.artifacts import atomic_file, atomic_folder, made, read_json, write_json
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.diagnostics.by_timestep import errors_by_timestep
from edgediff.distill import starting_student, taught_batches
from edgediff.distillation.objective import Distillation
from edgediff.distillation.targets import uses_features
from edgediff.metrics.features import efficientnet_lite0
from edgediff.model_folder import Loaded
from edgediff.output import Output
from edgediff.prune import prune
from edgediff.quality import Drawn, RealImages, draw, floor_row, model_row, profile, real_images
from edgediff.recipe import FEATURE_LOSSES, EvaluateConfig, Recipe, check, loss_words
from edgediff.run import Run
from edgediff.training import checkpoint, log
from edgediff.training.loop import train

RESULTS = Path(__file__).parent / "results"
LINES = RESULTS / "extreme-compression.jsonl"
FRAME = RESULTS / "extreme-compression-frame.json"
TEACHER = "fashion-ddpm"
EXTREME = 0.875  # of the channels removed: 63,465 of 3,939,393 parameters stay, 1.6 %
SHAPES: dict[str, dict[str, Any]] = {  # as many parameters or fewer, but not the same share of every level's channels
    "searched": {"params": 63465},  # by the search of `edgediff`: most of the importance kept
    "shallow": {"widths": (16, 12, 8), "depth": {"keep": 0, "by": "evenly"}},  # by hand: every optional block removed
}
STEPS, BATCH, CACHE, LEARNING_RATE = 5000, 32, 32768, 8e-3
SHORT = STEPS // 4  # where only the order of neighbours is asked for
LARGER = (0.75, 0.5)
LONG = STEPS * 4  # whether an order lasts
HALF = STEPS // 2  # of larger students: a step costs more, and brings more
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
IMAGES, CURVE_IMAGES, CURVE_POINTS = 1000, 500, 4
CURVED = ("main", "shape", "long")  # sets whose seed 0 has a curve of its score
AVERAGE, SPEED = "average-{}.safetensors", "speed.json"
CURVE_METRICS = ("frechet_distance", "kid_mean")
DRAWN_AT_ONCE = 50  # changes speed only: what a cache holds is a sixth faster than 250
ERROR_TIMESTEPS, ERROR_IMAGES = 12, 200
SHOWN = 10
SAMPLERS = {
    word: EvaluateConfig(num_images=IMAGES, batch_size=DRAWN_AT_ONCE, clip_sample=clipped)
    for word, clipped in (("free", False), ("clipped", True))
}

# Every method with its settings. Weights of losses of feature maps as their sweep chose; the others' are 1.
METHODS: dict[str, dict[str, Any]] = {
    "none": {"kd": "none"},
    "output": {"kd": "output"},
    "place": {"kd": "place"},
    "lift": {"kd": "lift"},
    "feature": {"kd": "feature=0.01"},
    "output+feature": {"kd": "output,feature=0.01"},
    "attention": {"kd": "attention=0.1"},
    "multi_scale": {"kd": "multi_scale"},
}


@dataclass(frozen=True)
class Cell:
    """One student of the table."""

    method: str
    seed: int
    set: str = "main"  # which question it answers
    ratio: float = EXTREME  # of the first teacher's channels removed, at every level alike
    shape: str | None = None  # instead: a name in SHAPES
    steps: int = STEPS
    taught_by: Cell | None = None  # the student that is its teacher, where that is not the first one
    distill: dict[str, Any] = field(default_factory=dict)  # what differs from the method's own settings
    learning_rate: float = LEARNING_RATE

    @property
    def curved(self) -> bool:
        """Whether it is scored on its way, too."""
        return self.seed == 0 and self.set in CURVED

    @property
    def key(self) -> str:
        """Its name: set/method/what differs/seed."""
        parts = [f"{name}={value}" for name, value in _flat(self.distill)]
        if self.ratio != EXTREME:
            parts.append(f"ratio={self.ratio}")
        if self.shape is not None:
            parts.append(f"shape={self.shape}")
        if self.steps != STEPS:
            parts.append(f"steps={self.steps}")
        if self.learning_rate != LEARNING_RATE:
            parts.append(f"lr={self.learning_rate:g}")
        if self.taught_by is not None:
            parts.append(f"teacher={self.taught_by.ratio}")
        return "/".join([self.set, self.method, ",".join(parts) or "-", f"seed{self.seed}"])

    def recipe(self, work: Path) -> Recipe:
        """The whole recipe, for the work folder that its teacher may be in."""
        settings = {**METHODS[self.method], **self.distill}
        cache = {"targets": CACHE, **settings.pop("cache", {})}
        training = {
            "steps": self.steps,
            "batch_size": BATCH,
            "learning_rate": self.learning_rate,
            "ema_decay": 0.998,
            "seed": self.seed,
            "checkpoint_every": self.steps // (5 * CURVE_POINTS),
        }
        kept = 1 - self.ratio if self.taught_by is None else (1 - self.ratio) / (1 - self.taught_by.ratio)
        values = {
            "teacher": str(self.teacher(work)),
            "data": {"name": "fashion-mnist"},
            "prune": {"ratio": 1 - kept} if self.shape is None else SHAPES[self.shape],
            "distill": {"training": training, "cache": cache, "initial": "fresh", **settings},
        }
        return check(values, Recipe)

    def folder(self, work: Path) -> Path:
        """Where it is made."""
        return work / "cells" / self.key

    def teacher(self, work: Path) -> Path:
        """The folder of its teacher."""
        return teacher.resolve(TEACHER).folder if self.taught_by is None else self.taught_by.folder(work) / "student"

    def targets(self, work: Path) -> Path:
        """The cache of its teacher's answers, with those feature maps that a loss looks at and its shape has too."""
        of_whom = TEACHER if self.taught_by is None else str(self.taught_by.ratio)
        maps = f"-features-{self.shape or 'ratio'}" if uses_features(self.recipe(work).distill) else ""
        return work / "targets" / f"{of_whom}{maps}"


V = {"student_prediction": "v_prediction"}
ANGULAR = {**V, "timestep_weighting": "angular"}

Settings = tuple[str, dict[str, Any]]
CENTRAL: tuple[Settings, ...] = (  # what the question is about
    ("output", {}),
    ("place", {}),
    ("output", ANGULAR),
    ("place", ANGULAR),
    ("none", {}),
    ("none", ANGULAR),
    ("output+feature", ANGULAR),
)
RIVALS = tuple(method for method in METHODS if method not in ("none", "output", "place"))


def cells() -> list[Cell]:
    """Every cell, the most telling first."""
    found = [Cell(method, seed, distill=distill) for seed in range(5) for method, distill in CENTRAL]
    found += [Cell(method, seed) for seed in range(5) for method in RIVALS]
    found += [Cell(method, seed, distill=V) for seed in (0, 1) for method in ("output", "place", "none")]
    found += shapes() + sizes() + why() + longer() + tuning() + rates() + weights()
    found += [cell for ratio in LARGER for cell in larger(ratio)]
    return found + smaller_teachers()


def shapes() -> list[Cell]:
    """As many parameters, where they do more."""
    settings: list[Settings] = [("place", {}), ("output", {}), ("place", ANGULAR), ("none", ANGULAR)]
    seeds = {"searched": range(5), "shallow": range(4)}
    ours = [Cell("output", seed, "shape", shape=shape, distill=ANGULAR) for shape in SHAPES for seed in seeds[shape]]
    ours += [Cell("output+feature", seed, "shape", shape="searched", distill=ANGULAR) for seed in range(5)]
    return ours + [
        Cell(method, seed, "shape", shape="searched", distill=distill)
        for seed in (0, 1)
        for method, distill in settings
    ]


def why() -> list[Cell]:
    """What makes the difference, taken apart: PLACE's groups and terms, the output, the weight of timesteps."""
    settings: list[Settings] = [
        *(("place", {"place": {"group_size": size}}) for size in (4, 64)),  # 16 is the rule, N is LIFT
        ("place", {"place": {"grouping": "random"}}),
        ("place", {"place": {"grouping": "raster"}}),
        ("output", {"initial": "pruned"}),
        ("place", {"initial": "pruned"}),
        ("output", {**ANGULAR, "initial": "pruned"}),
        ("output", {"kd_space": "v_prediction"}),  # an eps network, its error weighed as v's
        ("output", {"timestep_weighting": "angular"}),
        ("output", {**ANGULAR, "x0_threshold": "none"}),  # a teacher as raw as that of eps students
        ("place", {**ANGULAR, "place": {"terms": "fine"}}),
        ("place", {**ANGULAR, "place": {"terms": "coarse"}}),
        ("place", {**ANGULAR, "place": {"fine_weight": "fixed"}}),
        ("output", {**V, "timestep_weighting": "min_snr"}),
        ("output", {**V, "timestep_weighting": "normalised"}),
    ]
    found = [Cell(method, 0, "why", distill=distill) for method, distill in settings]
    smooth = {"place": {"norm": "l2"}}  # a group's share of the gradient ends with its error, not with a jump
    return found + [Cell("place", seed, "why", distill={**of, **smooth}) for seed in (0, 1) for of in ({}, ANGULAR)]


def longer() -> list[Cell]:
    """The best published-style student, PLACE, output KD, and the best of ours, trained four times as long."""
    ours = Cell("output", 0, "long", steps=LONG, shape="searched", distill=ANGULAR)
    return [ours, *(Cell(method, 0, "long", steps=LONG) for method in ("place", "output"))]


def sizes() -> list[Cell]:
    """How many remembered targets are enough; 0: a live teacher, every target of which is new; the rest have CACHE."""
    few, none = {"cache": {"targets": 1024}}, {"cache": {"targets": 0}}
    found = [Cell("output", seed, "cache", distill={**V, **size}) for size in (few, none) for seed in (0, 1)]
    # v students of few targets are no further from real images: asked again of a student that is closer to them.
    return [*found, Cell("output", 0, "cache", shape="searched", distill={**ANGULAR, **few})]


def larger(ratio: float) -> list[Cell]:
    """Students between the teacher and the extreme one, where conventional distillation is said to work."""
    settings: list[Settings] = [*((method, {}) for method in METHODS), ("output", ANGULAR), ("place", ANGULAR)]
    return [_between(method, seed, ratio, distill) for seed in (0, 1) for method, distill in settings]


def _between(method: str, seed: int, ratio: float, distill: dict[str, Any] | None = None) -> Cell:
    """A larger student, whose learning rate falls as its width grows (muP's rule for Adam; Yang et al. 2022)."""
    rate = LEARNING_RATE * (1 - EXTREME) / (1 - ratio)
    return Cell(method, seed, "ratio", ratio=ratio, steps=HALF, distill=distill or {}, learning_rate=rate)


def smaller_teachers() -> list[Cell]:
    """The extreme student of smaller teachers, which are larger students of the first one."""
    found = []
    for ratio in (0.5, 0.75, 0.8125):
        big = _between("output", 0, ratio)
        found += [big] if ratio not in LARGER else []
        found += [Cell(method, seed, "teacher", taught_by=big) for seed in (0, 1) for method in ("output", "place")]
    return found


def rates() -> list[Cell]:
    """Lower learning rates than short runs ask for: whether the order hangs on it."""
    alike: list[Settings] = [(method, {}) for method in METHODS if method not in ("attention", "output+feature")]
    alike += [("output", V), ("place", V), ("none", V), ("output", ANGULAR)]
    found = [Cell(method, 0, "rate", distill=distill, learning_rate=4e-3) for method, distill in CENTRAL[:4]]
    return found + [Cell(method, 0, "rate", distill=distill, learning_rate=2e-3) for method, distill in alike]


def weights() -> list[Cell]:
    """Other weights than 1, in full runs: short ones favour small weights, which leave little of the loss."""
    tried = (("lift", 0.1), ("place", 0.1), ("place", 10.0), ("multi_scale", 0.1), ("output", 10.0))
    return [Cell(method, 0, "weight", distill={"kd": {method: weight}}) for method, weight in tried]


def tuning() -> list[Cell]:
    """Learning rates and weights, in short runs on a seed that no table uses."""
    found = []
    for rate in RATES:
        settings: list[Settings] = [("output", {}), ("place", {}), ("output", V)]
        found += [
            Cell(method, 100, "tune", steps=SHORT, distill=distill, learning_rate=rate) for method, distill in settings
        ]
    ours: tuple[dict[str, Any], ...] = (
        {},
        {"kd": {"output": 10.0}},
        {"diffusion_weight": 0.0},
        {"student_prediction": "sample"},
    )
    found += [Cell("output", 100, "tune", steps=SHORT, distill={**ANGULAR, **more}) for more in ours]
    found.append(Cell("output", 100, "tune", steps=SHORT, distill=ANGULAR, learning_rate=1.6e-2))
    found += [Cell("place", 100, "tune", steps=SHORT, distill={**of, "place": {"norm": "l2"}}) for of in ({}, ANGULAR)]
    found.append(Cell("place", 100, "tune", steps=SHORT, distill=ANGULAR))
    found += [
        Cell("output", 100, "tune", shape="searched", steps=SHORT, distill=ANGULAR, learning_rate=rate)
        for rate in RATES[1:]
    ]
    found.append(Cell("output", 100, "tune", shape="shallow", steps=SHORT, distill=ANGULAR))
    found.append(Cell("none", 100, "tune", steps=SHORT))  # what weights go to
    for method in METHODS:
        if method == "none":
            continue
        *others, weighed = method.split("+")
        for weight in (0.01, 0.1, 1.0) if weighed in FEATURE_LOSSES else (0.1, 1.0, 10.0):
            kd = {**dict.fromkeys(others, 1.0), weighed: weight}
            if kd != {method: 1.0} or method in RIVALS:  # the others' rates were swept at weight 1
                found.append(Cell(method, 100, "tune", steps=SHORT, distill={"kd": kd}))
        if method in RIVALS:
            found.append(Cell(method, 100, "tune", steps=SHORT, learning_rate=RATES[1]))
    return found


def finished() -> dict[str, dict[str, Any]]:
    """Return the lines there are, by key."""
    lines = LINES.read_text().splitlines() if LINES.exists() else []
    return {line["key"]: line for line in map(json.loads, lines)}


class Bench:
    """What all cells share: the teacher, the images, the reference's features, the teacher's own samples."""

    def __init__(self, work: Path, output: Output) -> None:
        self.work, self.output = work, output
        self.extractor = efficientnet_lite0()
        self.teacher = model_folder.load(teacher.resolve(TEACHER).folder)
        self.data = Cell("none", 0).recipe(work).data
        self.train = samples.learned(self.data, "train", self.teacher, work / "encoded", output)
        self.test = samples.scored(self.data, "test", self.teacher, work / "encoded", output)
        self._real: dict[int, RealImages] = {}

    def real(self, count: int) -> RealImages:
        if count not in self._real:
            self._real[count] = real_images(self.test, self.train, self.extractor, count, self.output)
        return self._real[count]

    def drawn(self, model: Loaded, config: EvaluateConfig, file: Path) -> Drawn:
        """Return the samples of a model, from `file` where they were drawn before."""
        if not file.exists():
            denoiser = PyTorchDenoiser(model.model, model.family)
            found = draw(denoiser, model, config, self.output, file.stem, self.test)
            with atomic_file(file) as temporary:
                tensors = {
                    "pixels": torch.from_numpy(found.pixels),
                    "diverged": torch.tensor(found.diverged_share),
                    "finite": torch.from_numpy(found.finite),
                }
                save_file(tensors, temporary)
        tensors = load_file(file)
        return Drawn(tensors["pixels"].numpy(), "pytorch", float(tensors["diverged"]), tensors["finite"].numpy())

    def of_teacher(self, config: EvaluateConfig) -> Drawn:
        """Return the first teacher's images of the same seeds."""
        whole = config.model_copy(update={"num_images": IMAGES})
        kept = RESULTS / "extreme-compression"  # half an hour of one core: drawn once, for every machine
        found = self.drawn(self.teacher, whole, kept / f"teacher-{TEACHER}-{_sampler(whole)}.safetensors")
        return _first(found, config.num_images)

    def score(self, drawn: Drawn, config: EvaluateConfig) -> dict[str, Any]:
        """Score the first images of a student, as many as `config` says."""
        count = config.num_images
        row = model_row("student", _first(drawn, count), self.real(count), self.extractor, self.of_teacher(config))
        return row.model_dump(mode="json", exclude={"role", "backend"})

    def errors(self, student: Loaded) -> dict[str, list[float]]:
        """Return the student's errors against the first teacher at spread timesteps, on held-out images."""
        found = errors_by_timestep(
            self.teacher,
            {"student": student},
            self.test,
            timesteps=torch.linspace(0, 999, ERROR_TIMESTEPS).long(),
            num_images=ERROR_IMAGES,
            batch_size=ERROR_IMAGES,
            advance=lambda count: None,
        )["student"]
        return {
            "timesteps": [at.timestep for at in found],
            "mse": [at.mse for at in found],
            "x0_rmse": [at.x0_rmse for at in found],
        }


def _first(drawn: Drawn, count: int) -> Drawn:
    """Return the first images: a seed is an image, so they are the images of fewer."""
    return replace(drawn, pixels=drawn.pixels[:count], finite=drawn.finite[:count])


def _sampler(config: EvaluateConfig) -> str:
    return f"{'clipped' if config.clip_sample else 'free'}-{config.num_images}x{config.num_inference_steps}"


def trained(bench: Bench, cell: Cell) -> Path:
    """Return the folder of a cell's student, trained where it was not yet, after the student that teaches it."""
    folder = cell.folder(bench.work)
    if (folder / "student").exists():
        return folder / "student"
    if cell.taught_by is not None:
        with claim(bench.work, cell.taught_by, wait=True):
            trained(bench, cell.taught_by)
    run, recipe = Run(folder), cell.recipe(bench.work)
    big, settings = model_folder.load(cell.teacher(bench.work)), recipe.distill.training
    prune(run, recipe, bench.output)
    student = starting_student(model_folder.load(run.pruned), recipe.distill)
    adopt(student.model)
    objective = Distillation(student, [big], recipe.distill)
    batches = taught_batches(student, [big], bench.train, recipe, cell.targets(bench.work), bench.output.say)
    between = settings.steps // CURVE_POINTS
    with bench.output.progress(cell.key, settings.steps, checkpoint.finished_steps(run.checkpoints)) as progress:
        result = train(
            objective,
            batches,
            settings,
            checkpoints=run.checkpoints,
            log=run.train_log,
            identity={
                "distill": recipe.distill.model_dump(mode="json", exclude={"training"}),
                "teacher": big.sha256,
            },
            resume=True,
            on_step=lambda record: progress.advance(note=f"loss {record.values['loss']:.4f}"),
            snapshots=range(between, settings.steps, between) if cell.curved else (),
            on_snapshot=lambda step: save_file(student.model.state_dict(), folder / AVERAGE.format(step)),
        )
    write_json(folder / SPEED, {"steps_per_second": result.steps_per_second})
    with atomic_folder(folder / "student") as temporary:
        model_folder.save(temporary, student.model, student.scheduler)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return folder / "student"


def run_cell(bench: Bench, cell: Cell) -> None:
    """Train, draw and score one cell; append its line."""
    folder, recipe = cell.folder(bench.work), cell.recipe(bench.work)
    student = model_folder.load(trained(bench, cell))
    adopt(student.model)
    drawn = {
        word: bench.drawn(student, config, folder / f"samples-{_sampler(config)}.safetensors")
        for word, config in SAMPLERS.items()
    }
    line = {
        "key": cell.key,
        **asdict(cell),
        "kd": loss_words(recipe.distill.kd),
        "params": sum(p.numel() for p in student.model.parameters()),
        "scores": {word: bench.score(drawn[word], config) for word, config in SAMPLERS.items()},
        "curve": _curve(bench, cell, student, drawn["free"], folder),
        "error": bench.errors(student),
        "final": log.last_mean(log.read(Run(folder).train_log)),
        **read_json(folder / SPEED),
        "batch_size": BATCH,
        "cache": recipe.distill.cache.targets,
        "made": made(),
    }
    if cell.seed == 0:
        _picture(drawn.values(), RESULTS / "extreme-compression" / f"{cell.key.replace('/', '_')}.png")
    with LINES.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")


def _curve(bench: Bench, cell: Cell, student: Loaded, last: Drawn, folder: Path) -> list[dict[str, Any]]:
    """Score the averages that were kept on the way, and the last one, with fewer images, x0 not clipped."""
    config = SAMPLERS["free"].model_copy(update={"num_images": CURVE_IMAGES})
    drawn = {cell.steps: last}
    for step in range(0, cell.steps, cell.steps // CURVE_POINTS):
        if (folder / AVERAGE.format(step)).exists():
            model = student.family.build(student.model.config).eval()
            model.load_state_dict(load_file(folder / AVERAGE.format(step)))
            adopt(model)
            kept = folder / f"samples-{step}-{_sampler(config)}.safetensors"
            drawn[step] = bench.drawn(replace(student, model=model), config, kept)
    scores = {step: bench.score(drawn[step], config) for step in sorted(drawn)}
    return [{"step": step, **{name: of[name] for name in CURVE_METRICS}} for step, of in scores.items()]


def _picture(drawn: Iterable[Drawn], path: Path) -> None:
    """Keep the first samples, one sampler's below the other's."""
    rows = [np.concatenate(list(of_sampler.pixels[:SHOWN, 0]), axis=1) for of_sampler in drawn]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path, optimize=True)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in values.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


@contextmanager
def claim(work: Path, cell: Cell, *, wait: bool = False) -> Iterator[bool]:
    """Tell whether the cell is this process's while it lasts: not, where another one is at it and `wait` is false."""
    lock = work / "claims" / f"{cell.key.replace('/', '_')}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def run_all(work: Path, patterns: list[str]) -> None:
    torch.set_num_threads(1)
    bench = Bench(work, Output())
    for pattern in patterns:
        for cell in cells():
            if fnmatch.fnmatch(cell.key, pattern):
                with claim(work, cell) as mine:
                    if mine and cell.key not in finished():
                        run_cell(bench, cell)


def frame(work: Path) -> None:
    """Score what no cell changes: the teacher, and as many real images as it drew."""
    bench = Bench(work, Output())
    real = bench.real(IMAGES)
    rows = {"real images": dict.fromkeys(SAMPLERS, floor_row(real))}
    rows["teacher"] = {
        word: model_row("teacher", bench.of_teacher(config), real, bench.extractor) for word, config in SAMPLERS.items()
    }
    _picture(map(bench.of_teacher, SAMPLERS.values()), RESULTS / "extreme-compression" / "teacher.png")
    found = {name: {word: row.model_dump(mode="json") for word, row in of.items()} for name, of in rows.items()}
    how = profile(real, bench.extractor, SAMPLERS["free"], bench.teacher, bench.data).model_dump(mode="json")
    write_json(FRAME, {"scores": found, "profile": how, "made": made()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "list", "frame"])
    parser.add_argument("--work", type=Path, default=Path("runs/extreme"))
    parser.add_argument("--only", nargs="+", default=["main/*"], help="patterns of cell names, the first first")
    given = parser.parse_args()
    if given.what == "run":
        run_all(given.work, given.only)
    elif given.what == "frame":
        frame(given.work)
    else:
        done = finished()
        for cell in cells():
            print("done" if cell.key in done else "    ", cell.key)
