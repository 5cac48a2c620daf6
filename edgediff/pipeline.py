"""The verbs in order: one recipe, one run folder, from teacher to report; every stage resumable on its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from edgediff import model_folder, roles, samples, teacher
from edgediff.artifacts import MANIFEST, claims, content_hash, read_object, write_text
from edgediff.benchmark import benchmark
from edgediff.build import build, check_buildable
from edgediff.diagnose import diagnose
from edgediff.diffusion.sampler import check_steps
from edgediff.diffusion.schedule import prediction_type
from edgediff.distill import distill
from edgediff.distillation.cache import check_source
from edgediff.distillation.identity import WATCHING, of_student, target_source
from edgediff.errors import BadInputError, MissingExtraError
from edgediff.evaluate import evaluate
from edgediff.export import export
from edgediff.output import Output
from edgediff.plan import outlines, plan
from edgediff.profile import profile
from edgediff.prune import prune, pruning_config
from edgediff.recipe import DISTILL_WATCHING, PLACES, Recipe, check, differences, dump, read_yaml
from edgediff.report import report
from edgediff.results import Plan, Report, StagePlan, TrainingSummary
from edgediff.run import ROLES, Run
from edgediff.training import checkpoint, processes
from edgediff.training.facts import ADJUSTABLE, OF_STEPS
from edgediff.training.precision import check_precision
from edgediff.training.tracking import check_trackers

NAMED = 3  # keys that differ, of all


def compress(run: Run, recipe: Recipe, output: Output, *, resume: bool = False) -> Report | None:
    """Run every stage that is not up to date, and return the report.

    Of several processes all train, the main one does the rest, and the others get None.

    Args: resume: continue an interrupted distillation from its checkpoint.
    Raises: BadInputError and MissingExtraError before any work when something stands in the way of a later stage.
    """
    with processes.main_first():
        check_precision(recipe.distill.training.precision, processes.device())
        refuse_other_recipe(run, recipe)
        check_standing(run, recipe, resume=resume)
        prepare(run, recipe, output)
        prune(run, recipe, output)
    teach(run, recipe, output, resume=resume)
    if not processes.is_main():
        return None
    for role in ROLES:
        export(run, recipe, role, output)
    build(run, recipe, output)
    benchmark(run, recipe, output)
    evaluate(run, recipe, output)
    diagnose(run, recipe, output)
    return report(run, recipe, output)


def teach(run: Run, recipe: Recipe, output: Output, *, resume: bool = False) -> TrainingSummary:
    """Distil the student, and before it the chain of its teacher assistants, each pruned from the recipe's teacher."""
    for place, (assistant, of_assistant) in enumerate(roles.assistants(run, recipe), start=1):
        output.stage("assistant", f"{place} of {len(recipe.distill.assistants)}")
        with processes.main_first():
            prune(assistant, of_assistant, output)
        distill(assistant, of_assistant, output, resume=resume)
    return distill(run, recipe, output, resume=resume)


def prepare(run: Run, recipe: Recipe, output: Output) -> None:
    """Find out in seconds whether every stage can run, then claim the run folder by writing the resolved recipe.

    A latency or memory budget without a device's profile takes minutes here, once: this machine is measured first.

    Raises: what `check_ahead` raises; BadInputError for a pruning target out of reach.
    """
    for name in (recipe.teacher, *recipe.distill.teachers):
        teacher.resolve(name)  # fetched where it is only registered, so that it is looked at too
    check_ahead(run, recipe, output)
    if recipe.prune.needs_profile and recipe.prune.device is None:
        profile(recipe.teacher, run.profile, recipe.benchmark.threads, output)
    outlines(recipe, run.profile)
    claim(run, recipe)


def foresee(run: Run, recipe: Recipe, output: Output, *, resume: bool = False) -> Plan:
    """Return what `compress` would do, after what it checks before any work; nothing is written.

    Pruning and trainings that stand in the folder take no time; later stages, whose inputs are large files, count.

    Raises: what `compress` raises before any work.
    """
    with processes.main_first():
        check_precision(recipe.distill.training.precision, processes.device())
        check_ahead(run, recipe, output)
        check_standing(run, recipe, resume=resume)
        found = plan(recipe, run.profile)
        return found.model_copy(update={"stages": _without_finished(found.stages, run, recipe)})


def _without_finished(stages: Sequence[StagePlan], run: Run, recipe: Recipe) -> list[StagePlan]:
    """Return the stages, of which pruning and trainings are done up to the first that does not stand in the folder."""
    if any(map(teacher.registered, (recipe.teacher, *recipe.distill.teachers))):
        return list(stages)  # a teacher that is not here has made nothing here
    fingerprint = cache(model_folder.fingerprint)  # of a teacher that all of them have, read once
    standing = [_pruned(run, recipe, fingerprint)]
    for part, its in [*roles.assistants(run, recipe), (run, recipe)]:
        standing.append(_pruned(part, its, fingerprint) and _distilled(part, its, fingerprint))
    first = next(place for place, stage in enumerate(stages) if stage.stage == "prune")
    until = first + sum(itertools.takewhile(bool, standing))
    done = [stage.model_copy(update={"seconds": 0.0, "what": f"done: {stage.what}"}) for stage in stages[first:until]]
    return [*stages[:first], *done, *stages[until:]]


def check_standing(run: Run, recipe: Recipe, *, resume: bool) -> None:
    """Refuse trainings that stand in the folder, assistants' too, where this recipe can or may not go on with them.

    Training would refuse them too, but with the run's recipe already written over.

    Raises: BadInputError for more steps taken than asked for, and, unless they are to be resumed, for trainings that
    are not this recipe's finished ones.
    """
    if any(map(teacher.registered, (recipe.teacher, *recipe.distill.teachers))):
        return  # a teacher that is not here has taught nothing here
    fingerprint = cache(model_folder.fingerprint)
    for part, its in [*roles.assistants(run, recipe), (run, recipe)]:
        taken, asked = checkpoint.finished_steps(part.checkpoints), its.distill.training.steps
        if taken > asked:
            raise BadInputError(
                f"a training stands at step {taken}, beyond the {asked} asked for: `{part.checkpoints}`",
                "ask for at least as many steps, or choose another folder with `--out`",
            )
        if taken and not resume and not (_pruned(part, its, fingerprint) and _distilled(part, its, fingerprint)):
            raise BadInputError(
                f"a training that this recipe has not finished stands at step {taken}: `{part.checkpoints}`",
                "add `--resume` to go on from there with these settings, or choose another folder with `--out`",
            )


def _pruned(run: Run, recipe: Recipe, fingerprint: Callable[[Path], str]) -> bool:
    """Tell whether the pruned model in a folder is of this recipe and of the teacher as it is now."""
    known = {"teacher": fingerprint(roles.folder(run, recipe, "teacher"))}
    return claims(run.pruned, stage="prune", config=pruning_config(recipe), known=known, aside=PLACES)


def _distilled(run: Run, recipe: Recipe, fingerprint: Callable[[Path], str]) -> bool:
    """Tell whether the student in a folder is of this recipe, of its pruned model and of its teachers as they are."""
    teachers = roles.teaching(run, recipe)
    if not all(folder.is_dir() for folder in teachers):
        return False
    known = {
        "teacher": "+".join(map(fingerprint, teachers)),
        "pruned": content_hash(run.pruned),
    }
    return claims(run.student, stage="distill", config=of_student(recipe), known=known, aside=WATCHING)


def check_ahead(run: Run, recipe: Recipe, output: Output) -> None:
    """Find out whether data, run folder, target cache and this machine serve the recipe; nothing is written.

    Nothing is fetched either: a registered teacher that is not on this machine is not held against the data, nor
    against a target cache.

    Raises: BadInputError for an unknown teacher, data that is unknown or does not fit it, or a run folder or a target
    cache that holds another recipe's; MissingExtraError for a builder that is not installed.
    """
    if teacher.registered(recipe.teacher) is None:
        loaded = model_folder.load(teacher.resolve(recipe.teacher).folder)
        check_steps(loaded.scheduler.config, recipe.evaluate.num_inference_steps)
        samples.check(recipe.data, loaded, output)
    check_buildable(recipe)
    check_trackers(recipe.distill.training.trackers)
    refuse_other_recipe(run, recipe)
    check_targets(run, recipe)


def refuse_other_recipe(run: Run, recipe: Recipe) -> None:
    """Refuse a folder whose pruned or distilled model another recipe made; how it is timed and scored may change.

    Raises: BadInputError naming the first keys that differ, and their values.
    """
    if not run.recipe.exists():
        if run.path.is_dir() and any(path != run.profile for path in run.path.iterdir()):
            raise BadInputError(
                f"folder is not empty and holds no run: `{run.path}`", "choose another folder with `--out`"
            )
        return
    made_by = check(read_yaml(run.recipe), Recipe, f"`{run.recipe}`")
    before, after = (of.model_dump(mode="json") for of in (made_by, recipe))
    found: dict[str, str] = {}
    if (run.pruned / MANIFEST).exists():
        for section in ("teacher", "data", "prune"):
            found |= differences(before[section], after[section], section)
        if "teacher" in found and _is_cut_from(run, recipe.teacher):
            del found["teacher"]  # the same one, by another name or at another place
    chain = [run, *(run.assistant(place) for place in range(len(made_by.distill.assistants)))]
    if any((of.student / MANIFEST).exists() or checkpoint.finished_steps(of.checkpoints) for of in chain):
        found |= differences(before["distill"], after["distill"], "distill")
        if "distill.teachers" in found and _is_taught_by(run, recipe):
            del found["distill.teachers"]
        # `auto` may choose another one on this machine, so which it was may be said.
        precision = recipe.distill.training.precision
        if made_by.distill.training.precision == "auto" and _began_with(run, precision):
            found.pop("distill.training.precision", None)
    longer = before["distill"]["training"]["steps"] != after["distill"]["training"]["steps"]
    adjustable = _adjustable(run, made_by, longer=longer)
    differing = [words for key, words in found.items() if key not in adjustable]
    if differing:
        more = f"; and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        raise BadInputError(
            f"folder holds another recipe's run, old → new: {'; '.join(differing[:NAMED])}{more}: `{run.path}`",
            f"go on with the recipe that it was started with, `{run.recipe}`, start another with `--out` (`edgediff "
            "prune` or `compress`), or delete this one to start again",
        )


def _is_cut_from(run: Run, name: str) -> bool:
    """Tell whether the run's pruned model was made of a teacher that is on this machine."""
    made_of = read_object(run.pruned / MANIFEST)["inputs"]["teacher"]
    return bool(_is_here(name) and made_of == model_folder.fingerprint(teacher.resolve(name).folder))


def _is_taught_by(run: Run, recipe: Recipe) -> bool:
    """Tell whether the recipe's teachers, which are on this machine, taught the first that was trained of a run."""
    names = recipe.distill.teachers or (recipe.teacher,)
    first = run.assistant(0) if recipe.distill.assistants else run
    state = first.checkpoints / checkpoint.FILE_NAME
    if (first.student / MANIFEST).exists():
        taught_by = read_object(first.student / MANIFEST)["inputs"]["teacher"]
    elif state.exists():
        taught_by = checkpoint.read_facts(state)["identity"]["teacher"]
    else:
        return False
    if not all(map(_is_here, names)):
        return False
    return bool(taught_by == "+".join(model_folder.fingerprint(teacher.resolve(name).folder) for name in names))


def _is_here(name: str) -> bool:
    """Tell whether a teacher is on this machine, where nothing is to be fetched for it."""
    return name in teacher.zoo() or (Path(name).is_dir() and teacher.registered(name) is None)


def _began_with(run: Run, precision: str) -> bool:
    """Tell whether the standing training, whose recipe says `auto`, is one in this precision."""
    state = run.checkpoints / checkpoint.FILE_NAME
    return state.exists() and checkpoint.read_facts(state)["identity"]["training"]["precision"] == precision


def _adjustable(run: Run, made_by: Recipe, *, longer: bool) -> set[str]:
    """Return the keys that may change in a run as it stands; longer: more steps are asked for."""
    training = set(ADJUSTABLE)
    made, taken = (run.student / MANIFEST).exists(), checkpoint.finished_steps(run.checkpoints)
    if made and not longer and not 0 < taken < made_by.distill.training.steps:
        training -= set(OF_STEPS)  # no step is left that these could be settings of
    if (made or taken) and any(assistant.steps is None for assistant in made_by.distill.assistants):
        training -= {"steps"}  # the teachers would be trained on, and be others
    aside = {*(f"distill.{name}" for name in DISTILL_WATCHING), *PLACES}
    return {"distill.cache.folder", *aside, *(f"distill.training.{name}" for name in training)}


def check_targets(run: Run, recipe: Recipe) -> None:
    """Refuse a cache of targets that this recipe's are not; an assistant's student meets its teacher when that is made.

    Raises: BadInputError naming what differs.
    """
    settings = recipe.distill
    absent = any(map(teacher.registered, (recipe.teacher, *settings.teachers)))
    if settings.remembered_targets and not settings.assistants and not absent:
        folders = roles.teaching(run, recipe)
        hashes, schedules = (list(map(of, folders)) for of in (model_folder.fingerprint, model_folder.noise_schedule))
        pruned_from = model_folder.noise_schedule(roles.folder(run, recipe, "teacher"))
        own = settings.student_prediction or prediction_type(pruned_from)
        check_source(Path(settings.cache.folder or run.targets), target_source(recipe, hashes, schedules, own))


def claim(run: Run, recipe: Recipe) -> None:
    """Write the resolved recipe into the run folder, every default written out."""
    write_text(run.recipe, dump(recipe))


@contextmanager
def claimed(run: Run, recipe: Recipe) -> Iterator[None]:
    """Claim a run for a changed recipe, unless a stage refuses it: then the run keeps the recipe that it had."""
    if not processes.is_main():
        yield
        return
    before = run.recipe.read_text(encoding="utf-8")
    claim(run, recipe)
    try:
        yield
    except (BadInputError, MissingExtraError):
        write_text(run.recipe, before)
        raise
