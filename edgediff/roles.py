"""Where the models of a run are: the teacher wherever it comes from, the others in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from edgediff import teacher
from edgediff.errors import BadInputError
from edgediff.recipe import WIDTH_TARGETS, DistillConfig, Recipe
from edgediff.run import Role, Run

Teacher = TypeVar("Teacher")


def folder(run: Run, recipe: Recipe, role: Role) -> Path:
    """Return the pipeline folder of a role.

    Raises: BadInputError for an unknown teacher, and naming the command to run for a model that is not made yet.
    """
    if role == "teacher":
        return teacher.resolve(recipe.teacher).folder
    path, command = {
        "pruned": (run.pruned, f"edgediff prune --recipe {run.recipe} --out {run.path}"),
        "student": (run.student, f"edgediff distill {run.path}"),
    }[role]
    if not path.is_dir():
        raise BadInputError(f"the {role} model is not there yet: `{path}`", f"run `{command}` first")
    return path


def encoded(run: Run, recipe: Recipe) -> Path:
    """Return where the latents and text embeddings of a run's data are kept, which every stage shares."""
    return Path(recipe.data.encoded or run.encoded)


def teaching(run: Run, recipe: Recipe) -> list[Path]:
    """Return the pipeline folders that teach the run's student: the last of its chain, or with `dense` all of it.

    Raises: BadInputError for an unknown teacher.
    """
    config = recipe.distill
    first = [teacher.resolve(name).folder for name in config.teachers or (recipe.teacher,)]
    return taught_by(config, first, [run.assistant(place).student for place in range(len(config.assistants))])


def taught_by(config: DistillConfig, first: Sequence[Teacher], assistants: Sequence[Teacher]) -> list[Teacher]:
    """Return, of the first teachers and of the assistants that are trained by now, those that teach the next model."""
    return [*first, *assistants] if config.guidance == "dense" or not assistants else [assistants[-1]]


def assistants(run: Run, recipe: Recipe) -> list[tuple[Run, Recipe]]:
    """Return the run and the recipe of every teacher assistant, in the order in which they are made."""
    found = []
    for place, of_assistant in enumerate(assistant_recipes(recipe)):
        before = recipe.distill.model_copy(update={"assistants": recipe.distill.assistants[:place]})
        teachers = teaching(run, recipe.model_copy(update={"distill": before}))
        distill = of_assistant.distill.model_copy(update={"teachers": tuple(map(str, teachers))})
        found.append((run.assistant(place), of_assistant.model_copy(update={"distill": distill})))
    return found


def assistant_recipes(recipe: Recipe) -> list[Recipe]:
    """Return how every teacher assistant is pruned and trained; who teaches it is not said, and nothing looked up."""
    found = []
    for place, assistant in enumerate(recipe.distill.assistants):
        steps, cache = assistant.steps or recipe.distill.training.steps, recipe.distill.cache
        if cache.folder is not None:  # a folder holds the targets of one teacher
            cache = cache.model_copy(update={"folder": str(Path(cache.folder) / "assistants" / str(place))})
        training = recipe.distill.training.model_copy(update={"steps": steps})
        changes = {"assistants": (), "training": training, "cache": cache}
        no_target = dict.fromkeys((*WIDTH_TARGETS, "device", "depth"))
        prune = recipe.prune.model_copy(update={**no_target, "ratio": assistant.ratio})
        distill = recipe.distill.model_copy(update=changes)
        found.append(recipe.model_copy(update={"prune": prune, "distill": distill}))
    return found
