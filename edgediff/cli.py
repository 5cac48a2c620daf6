"""The command line: one command a verb; parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from edgediff import __version__
from edgediff.errors import BadInputError, EdgeDiffError, InterruptedStageError

if TYPE_CHECKING:
    from edgediff.output import Output
    from edgediff.recipe import Recipe
    from edgediff.results import Plan, Search
    from edgediff.run import Run

app = typer.Typer(
    name="edgediff",
    help="Prune, distill, export, build, time, score and gate diffusion models for edge devices.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
teachers_app = typer.Typer(help="The teachers that come along.")
teacher_app = typer.Typer(help="Make a teacher.", no_args_is_help=True)
recipes_app = typer.Typer(help="The recipes that come along.")
app.add_typer(teachers_app, name="teachers")
app.add_typer(teacher_app, name="teacher")
app.add_typer(recipes_app, name="recipes")

# typer exports one of its errors of usage, not the class of them all, which is click's or, in newer ones, its own.
UsageError = cast(type[Exception], typer.BadParameter.__base__)

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted distillation from its checkpoint.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with estimated time and memory, do nothing.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The run folder to make or to go on with.")]
RecipeFile = Annotated[
    str | None, typer.Option("--recipe", "-r", help="A recipe file, or the name of one that comes along.")
]
TeacherName = Annotated[
    str | None, typer.Option("--teacher", "-t", help="A teacher's name, a pipeline folder, or a hub id.")
]
Ratio = Annotated[float | None, typer.Option(help="Fraction of channels removed, in [0, 1).")]
Params = Annotated[str | None, typer.Option(help="Parameters that stay, such as 250k.")]
Macs = Annotated[str | None, typer.Option(help="MACs of one forward that stay, such as 1.5G.")]
Latency = Annotated[str | None, typer.Option(help="Time of a step on the device that is not exceeded, such as 30ms.")]
Memory = Annotated[str | None, typer.Option(help="Memory on the device that is not exceeded, such as 500MB.")]
Device = Annotated[
    str | None, typer.Option(help="The device's profile (`edgediff profile`); without one this machine is measured.")
]
Kd = Annotated[
    str | None,
    typer.Option(
        help="What to learn from: place, lift, output, angular, feature=0.01, ... or several, with commas; none."
    ),
]
CacheTargets = Annotated[
    str | None, typer.Option("--cache-targets", help="Teacher targets to keep on disk, such as 64k.")
]
Trt = Annotated[bool, typer.Option("--trt", help="Build TensorRT engines with every builder that can build here.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Prune, distill, export, build, time, score and gate diffusion models for edge devices."""
    if version:
        print(f"edgediff {__version__}")
        raise typer.Exit


@app.command()
def compress(
    out: Out,
    overrides: Overrides = None,
    teacher: TeacherName = None,
    recipe: RecipeFile = None,
    ratio: Ratio = None,
    params: Params = None,
    macs: Macs = None,
    latency: Latency = None,
    memory: Memory = None,
    device: Device = None,
    kd: Kd = None,
    cache_targets: CacheTargets = None,
    trt: Trt = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run, with its recipe where none is given.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prune, distill, export, build, time, score, diagnose and report: the whole line over one run folder."""
    with _speaking(json, quiet, together=True) as output:
        from edgediff import pipeline
        from edgediff.run import Run

        run = Run(out)
        if resume and recipe is None and run.recipe.exists():
            recipe = str(run.recipe)  # what is not given again stays as it was
        changes = _with_cache(_with_trt(overrides, trt), cache_targets)
        targets = _targets(ratio, params, macs, latency, memory, device)
        resolved = _resolve(recipe, teacher, targets, changes, kd)
        if dry_run:
            _show_plan(pipeline.foresee(run, resolved, output, resume=resume), resolved, output)
            return
        report = pipeline.compress(run, resolved, output, resume=resume)
        if report is not None:
            output.data(report.model_dump(mode="json"))


@app.command()
def prune(
    out: Out,
    overrides: Overrides = None,
    teacher: TeacherName = None,
    recipe: RecipeFile = None,
    ratio: Ratio = None,
    params: Params = None,
    macs: Macs = None,
    latency: Latency = None,
    memory: Memory = None,
    device: Device = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also prune in every way to one size, and rank the ways.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Start a run: cut a teacher to a student of fewer channels or blocks. The other stages go on from its folder."""
    with _speaking(json, quiet) as output:
        from edgediff import pipeline
        from edgediff.compare_prunings import compare_prunings
        from edgediff.prune import prune as verb
        from edgediff.results import Pruning
        from edgediff.run import Run

        targets = _targets(ratio, params, macs, latency, memory, device)
        run, resolved = Run(out), _resolve(recipe, teacher, targets, overrides)
        pipeline.prepare(run, resolved, output)
        reached = verb(run, resolved, output)
        comparison = compare_prunings(run, resolved, output) if compare else None
        output.data(Pruning(**reached.model_dump(), comparison=comparison).model_dump(mode="json"))


@app.command()
def distill(
    run: RunFolder,
    overrides: Overrides = None,
    kd: Kd = None,
    cache_targets: CacheTargets = None,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the pruned student to follow its teacher (LIFT/PLACE, or a rival)."""
    changes = _with_kd(_with_cache(overrides, cache_targets), kd)
    with _stage(run, changes, json, quiet, together=True) as (folder, recipe, output):
        from edgediff.pipeline import teach

        output.data(teach(folder, recipe, output, resume=resume).model_dump(mode="json"))


@app.command()
def export(
    run: RunFolder, overrides: Overrides = None, trt: Trt = False, json: Json = False, quiet: Quiet = False
) -> None:
    """Write teacher, pruned model and student as ONNX, each checked against PyTorch."""
    with _stage(run, _with_trt(overrides, trt), json, quiet) as (folder, recipe, output):
        from edgediff.build import build as build_verb
        from edgediff.build import check_buildable
        from edgediff.export import check_exportable
        from edgediff.export import export as verb
        from edgediff.run import ROLES

        check_exportable(folder, recipe)
        if trt:
            check_buildable(recipe)
        result: dict[str, Any] = {role: verb(folder, recipe, role, output).model_dump(mode="json") for role in ROLES}
        if trt:
            result["builds"] = [built.model_dump(mode="json") for built in build_verb(folder, recipe, output)]
        output.data(result)


@app.command()
def build(
    run: RunFolder, overrides: Overrides = None, trt: Trt = False, json: Json = False, quiet: Quiet = False
) -> None:
    """Build the student's engines with the recipe's builders."""
    with _stage(run, _with_trt(overrides, trt), json, quiet) as (folder, recipe, output):
        from edgediff.build import build as verb

        output.data({"builds": [built.model_dump(mode="json") for built in verb(folder, recipe, output)]})


@app.command()
def bench(run: RunFolder, overrides: Overrides = None, json: Json = False, quiet: Quiet = False) -> None:
    """Time teacher, pruned model and student side by side on every backend that runs here."""
    with _stage(run, overrides, json, quiet) as (folder, recipe, output):
        from edgediff.benchmark import benchmark as verb

        output.data(verb(folder, recipe, output).model_dump(mode="json"))


@app.command("eval")
def evaluate(run: RunFolder, overrides: Overrides = None, json: Json = False, quiet: Quiet = False) -> None:
    """Draw images and score them against real ones and against the teacher's of the same seeds."""
    with _stage(run, overrides, json, quiet) as (folder, recipe, output):
        from edgediff.evaluate import evaluate as verb

        output.data(verb(folder, recipe, output).model_dump(mode="json"))


@app.command()
def diagnose(run: RunFolder, overrides: Overrides = None, json: Json = False, quiet: Quiet = False) -> None:
    """Show where the student errs: error by timestep, error maps, the linear fit, sharpness."""
    with _stage(run, overrides, json, quiet) as (folder, recipe, output):
        from edgediff.diagnose import diagnose as verb

        output.data(verb(folder, recipe, output).model_dump(mode="json"))


@app.command()
def report(run: RunFolder, overrides: Overrides = None, json: Json = False, quiet: Quiet = False) -> None:
    """Write report.json, report.html and the model card from what the stages left."""
    with _stage(run, overrides, json, quiet) as (folder, recipe, output):
        from edgediff.report import report as verb

        output.data(verb(folder, recipe, output).model_dump(mode="json"))


@app.command()
def check(
    run: RunFolder,
    baseline: Annotated[Path, typer.Option(help="The baseline file.")] = Path("baseline.json"),
    write_baseline: Annotated[bool, typer.Option("--write-baseline", help="Write the baseline from this run.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Also write the verdict as JUnit XML to this file.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Gate a run in CI. Exit code 0: no regression, 1: regression, 2: bad input, 3: not comparable."""
    with _speaking(json, quiet) as output:
        from edgediff import check as gate
        from edgediff.artifacts import write_text

        if write_baseline:
            written = gate.write_baseline(run, baseline)
            output.say(f"baseline written: `{baseline}`")
            output.data(written.model_dump(mode="json", exclude_none=True))
            return
        verdict = gate.check(run, baseline, output)
        if junit is not None:
            write_text(junit, gate.junit(verdict))
        output.data(verdict.model_dump(mode="json"))
        raise typer.Exit(verdict.exit_code)


@app.command()
def generate(
    teacher: Annotated[str, typer.Option("--teacher", "-t", help="A teacher's name, a pipeline folder, or a hub id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The image folder to write, or to go on with.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="num_images, guidance_scale, captions, data.name, ..."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw a teacher's images into a folder, to distill from where no data set may be used."""
    with _speaking(json, quiet) as output:
        from edgediff.generate import generate as verb
        from edgediff.recipe import GenerateConfig, apply_overrides
        from edgediff.recipe import check as check_recipe

        config = check_recipe(apply_overrides({}, overrides or ()), GenerateConfig, "options")
        output.data({"images": str(verb(teacher, out, config, output))})


@app.command()
def profile(
    teacher: Annotated[str, typer.Option("--teacher", "-t", help="A teacher's name, or a pipeline folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The profile to write, for `--device`.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time the blocks of a teacher's students on this device, for budgets of latency and memory."""
    with _speaking(json, quiet) as output:
        from edgediff.profile import profile as verb

        output.data(verb(teacher, out, threads, output).model_dump(mode="json"))


@app.command()
def doctor(json: Json = False, quiet: Quiet = False) -> None:
    """Say what is installed and which backends can build and run here, and why the others cannot."""
    with _speaking(json, quiet) as output:
        from edgediff.doctor import doctor as verb

        output.data(verb(output).model_dump(mode="json"))


@teachers_app.callback(invoke_without_command=True)
def teachers(context: typer.Context, json: Json = False) -> None:
    """List the teachers that are known by name: those that come along, and published ones."""
    if context.invoked_subcommand:
        return
    with _speaking(json, False) as output:
        from edgediff.teacher import listing

        rows = listing()
        columns = ("name", "params", "sample", "licence", "where")
        output.table(
            "teachers",
            list(columns),
            [[f"{row[key] / 1e6:,.2f}M" if key == "params" else row[key] for key in columns] for row in rows],
        )
        output.data({"teachers": rows})


@teachers_app.command("show")
def teachers_show(name: Annotated[str, typer.Argument(help="A teacher's name, a folder, or a hub id.")]) -> None:
    """Print a teacher's model card, or what is known of a published teacher and whether it is on this machine."""
    with _speaking(False, False) as output:
        from edgediff.teacher import describe

        output.page(describe(name))


@teacher_app.command("train")
def teacher_train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A teacher recipe file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: runs/<name of the recipe>.")] = None,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a small teacher from nothing, score it, and write its card."""
    with _speaking(json, quiet, together=True) as output:
        from edgediff.recipe import TeacherRecipe, read
        from edgediff.train_teacher import train_teacher

        resolved = read(recipe, overrides or (), TeacherRecipe)
        folder = train_teacher(resolved, out or Path("runs") / resolved.name, output, resume=resume)
        output.say(f"teacher: `{folder}`")
        output.data({"teacher": str(folder)})


@teacher_app.command("train-autoencoder")
def teacher_train_autoencoder(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="An autoencoder recipe file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: runs/<name of the recipe>.")] = None,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the autoencoder in whose latents a small teacher works."""
    with _speaking(json, quiet, together=True) as output:
        from edgediff.recipe import AutoencoderRecipe, read
        from edgediff.train_autoencoder import train_autoencoder

        resolved = read(recipe, overrides or (), AutoencoderRecipe)
        folder = train_autoencoder(resolved, out or Path("runs") / resolved.name, output, resume=resume)
        output.data({"autoencoder": str(folder)})


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context, json: Json = False) -> None:
    """List the recipes that come along."""
    if context.invoked_subcommand:
        return
    with _speaking(json, False) as output:
        from edgediff.recipe import packaged

        rows = [{"name": name, "path": str(path), "about": about} for name, (path, about) in packaged().items()]
        output.table("recipes", ["name", "about"], [[row["name"], row["about"]] for row in rows])
        output.data({"recipes": rows})


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(help="The name of a recipe that comes along.")]) -> None:
    """Print a recipe."""
    with _speaking(False, False) as output:
        from edgediff.recipe import find

        output.page(find(name).read_text(encoding="utf-8"))


@recipes_app.command("check")
def recipes_check(json: Json = False, quiet: Quiet = False) -> None:
    """Hold every recipe against its teacher and its paper: does it resolve, has its student the printed size?"""
    with _speaking(json, quiet) as output:
        from edgediff.check_recipes import check_recipes

        verdicts = check_recipes(output)
        output.data({"recipes": [verdict.model_dump(mode="json") for verdict in verdicts]})
        raise typer.Exit(int(any(verdict.status in ("differs", "invalid") for verdict in verdicts)))


@contextmanager
def _speaking(json: bool, quiet: bool, *, together: bool = False) -> Iterator[Output]:
    """Give a command its voice, and word a SIGINT as what it is: a pause.

    Started as several processes (`accelerate launch -m edgediff ...`), only the main one speaks, and only commands
    that train run in the others, `together`.
    """
    from edgediff.output import Output
    from edgediff.training import processes

    if not (together or processes.is_main()):
        raise typer.Exit
    output = Output("quiet" if not processes.is_main() else "json" if json else "quiet" if quiet else "human")
    try:
        yield output
        processes.leave()
    except KeyboardInterrupt as error:
        raise InterruptedStageError(
            "interrupted; finished stages are kept",
            "run the same command again to go on, with `--resume` where it was training",
        ) from error


@contextmanager
def _stage(
    path: Path, overrides: list[str] | None, json: bool, quiet: bool, *, together: bool = False
) -> Iterator[tuple[Run, Recipe, Output]]:
    """Open an existing run with its recipe, changed by the overrides, for one stage."""
    with _speaking(json, quiet, together=together) as output:
        from edgediff.recipe import Recipe, apply_overrides, read_stored
        from edgediff.recipe import check as check_recipe
        from edgediff.run import Run

        run = Run(path)
        values = apply_overrides(read_stored(run.recipe), overrides or ())
        recipe = check_recipe(values, Recipe, f"`{run.recipe}`")
        from edgediff import pipeline  # last: it takes seconds, which a mistyped path or key need not

        pipeline.refuse_other_recipe(run, recipe)
        with pipeline.claimed(run, recipe) if overrides else nullcontext():
            yield run, recipe, output


def _resolve(
    recipe: str | None,
    teacher: str | None,
    targets: dict[str, Any],
    overrides: list[str] | None,
    kd: str | None = None,
) -> Recipe:
    """Put recipe file, options and overrides together, in that order, and check the whole once."""
    from edgediff.recipe import WIDTH_TARGETS, Recipe, apply_overrides, find, read_yaml
    from edgediff.recipe import check as check_recipe

    values: dict[str, Any] = read_yaml(find(recipe)) if recipe else {}
    given = {name: value for name, value in targets.items() if value is not None}
    if given:
        # A target on the command line takes the place of the recipe's, whichever kind that one is.
        values = apply_overrides(values, [f"prune.{key}=null" for key in (*WIDTH_TARGETS, "device")])
        values["prune"] |= given
    if teacher is not None:
        values["teacher"] = teacher
    values = apply_overrides(values, _with_kd(overrides, kd) or ())
    values.setdefault("prune", {})
    return check_recipe(values, Recipe, f"recipe `{recipe}`" if recipe else "options")


def _targets(
    ratio: float | None,
    params: str | None,
    macs: str | None,
    latency: str | None,
    memory: str | None,
    device: str | None,
) -> dict[str, Any]:
    """Return the recipe keys that the options of pruning set; those not given are None."""
    budgets = {"params": params, "macs": macs, "latency_ms": latency, "memory_mb": memory}
    return {"ratio": ratio, **budgets, "device": device}


def _with_cache(overrides: list[str] | None, targets: str | None) -> list[str] | None:
    return overrides if targets is None else [f"distill.cache.targets={targets}", *(overrides or [])]


def _with_kd(overrides: list[str] | None, kd: str | None) -> list[str] | None:
    return overrides if kd is None else [f'distill.kd="{kd}"', *(overrides or [])]


def _with_trt(overrides: list[str] | None, trt: bool) -> list[str] | None:
    if not trt:
        return overrides
    from edgediff.backends import usable_builders
    from edgediff.backends.tensorrt import library

    builders = usable_builders()
    if not builders:
        library("tensorrt_rtx")  # says how to install the one that builds on any machine
    return [f"build.backends=[{', '.join(builders)}]", *(overrides or [])]


def _show_plan(found: Plan, recipe: Recipe, output: Output) -> None:
    widths = [", ".join(map(str, value.values())) for value in (found.widths_before, found.widths_after)]
    output.table(
        f"plan: {found.teacher}",
        ["", "teacher", "student"],
        [
            ["widths", *widths],
            ["parameters", f"{found.before.params:,}", f"{found.after.params:,}"],
            ["MACs", f"{found.before.macs:,}", f"{found.after.macs:,}"],
            *_predicted_rows(found.search),
        ],
    )
    total = sum(stage.seconds for stage in found.stages)
    output.table(
        f"estimated here: {_duration(total)}, {found.memory_mib:,.0f} MiB at the peak",
        ["stage", "time", "what"],
        [[stage.stage, _duration(stage.seconds), stage.what] for stage in found.stages],
    )
    output.data({**found.model_dump(mode="json"), "recipe": recipe.model_dump(mode="json")})


def _predicted_rows(search: Search | None) -> list[list[str]]:
    if search is None:
        return []
    rows = [["importance kept, about", "100%", f"{search.found.importance_kept:.0%}"]]
    for name, words in (("latency_ms", "ms a step"), ("memory_mb", "MB")):
        if name in search.teacher:
            figures = [f"{costs[name]:,.3g}" for costs in (search.teacher, search.found.costs)]
            rows.append([f"{words}, predicted for {search.device}", *figures])
    return rows


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def main() -> None:
    """Run the command line; the one place where an error becomes words and an exit code."""
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        _fail_usage(error)
    except EdgeDiffError as error:
        _fail(error)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(BadInputError(f"cannot use `{error.filename}`: {error.strerror}"))
    raise SystemExit(code)


def _fail_usage(error: Any) -> NoReturn:
    """Word typer's error as all others are; a command without its arguments has shown its help instead."""
    message = error.format_message().strip().rstrip(".")
    if type(error).__name__ == "NoArgsIsHelpError":  # whose message is the help, unless rich has printed that already
        print(message)
        raise SystemExit(error.exit_code)
    hint = f"`{error.ctx.command_path} --help` shows what it takes" if error.ctx else ""
    _fail(BadInputError(message[0].lower() + message[1:], hint))


def _fail(error: EdgeDiffError) -> NoReturn:
    from edgediff.output import Output
    from edgediff.training import processes

    if processes.tells(error):
        Output("json" if "--json" in sys.argv else "human").error(error)
    raise SystemExit(error.exit_code)
