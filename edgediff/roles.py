"""Where the models of a run are: the teacher wherever it comes from, the others in the run folder."""

from __future__ import annotations

from pathlib import Path

from edgediff import teacher
from edgediff.errors import BadInputError
from edgediff.recipe import Recipe
from edgediff.run import Role, Run

MADE_BY: dict[Role, str] = {"pruned": "prune", "student": "distill"}


def folder(run: Run, recipe: Recipe, role: Role) -> Path:
    """Return the pipeline folder of a role.

    Raises: BadInputError for an unknown teacher, and naming the command to run for a model that is not made yet.
    """
    if role == "teacher":
        return teacher.resolve(recipe.teacher).folder
    path = run.pruned if role == "pruned" else run.student
    if not path.is_dir():
        command = f"edgediff {MADE_BY[role]} {run.path}"
        raise BadInputError(f"the {role} model is not there yet: `{path}`", f"run `{command}` first")
    return path
