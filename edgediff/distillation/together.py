"""What models must have in common so that one can teach another, found out before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgediff.artifacts import read_object
from edgediff.diffusion.schedule import same
from edgediff.errors import BadInputError
from edgediff.families import Config, Family

LATENT = ("latent_channels", "scaling_factor", "shift_factor")  # of an autoencoder: others decode the same latents
TEXT = ("architectures", "hidden_size", "num_hidden_layers", "vocab_size")


@dataclass(frozen=True)
class Common:
    """One model as those it is trained with see it."""

    sample_shape: tuple[int, int, int]
    told: dict[str, tuple[int, ...]]  # shape of every further argument of its forward, for one sample
    classes: int | None  # that its labels are of; None: it is told none
    scheduler: Any  # None: not on this machine yet
    encoders: dict[str, dict[str, Any]] | None  # settings of what makes its latents and embeddings; None: not known


def common(family: Family, config: Config, scheduler: Any, folder: Path | None) -> Common:
    """Describe a model. Args: folder: of its pipeline, where that is on this machine."""
    inputs = family.example_inputs(config)
    told = {name: tuple(inputs[name].shape[1:]) for name in family.conditioning_names(config)}
    classes = family.classes(config) if "class_labels" in told else None
    return Common(family.sample_shape(config), told, classes, scheduler, _encoders(folder) if folder else None)


def check_together(own: Common, *teachers: Common) -> None:
    """Raise BadInputError for teachers that do not see a batch as the student does.

    They need its samples, its conditioning, its encoders (by their configs), and its noise schedule.
    """
    for other in teachers:
        if other.sample_shape != own.sample_shape:
            raise BadInputError(
                f"teacher and student work on other samples: {other.sample_shape} and {own.sample_shape}",
                "choose teachers of the size that the student was pruned from",
            )
        if (other.told, other.classes) != (own.told, own.classes):
            raise BadInputError(
                f"teacher and student are told other things: {_words(other)} and {_words(own)}",
                "choose teachers with the conditioning of the recipe's teacher",
            )
        differing = _differing(own.encoders, other.encoders)
        if differing is not None:
            raise BadInputError(
                f"teacher and student have different encoders, so a batch is not the same to both: `{differing}`",
                "choose teachers whose pipelines have the parts of the recipe's teacher",
            )
        if None not in (own.scheduler, other.scheduler) and not same(other.scheduler, own.scheduler):
            raise BadInputError(
                "teacher and student have different noise schedules, so a timestep is not the same noise to both",
                "choose teachers that were trained with the schedule of the recipe's teacher",
            )


def _differing(mine: dict[str, dict[str, Any]] | None, theirs: dict[str, dict[str, Any]] | None) -> str | None:
    """Return the first part that one has not, or has otherwise; what a config leaves to its class is not compared."""
    if mine is None or theirs is None:
        return None
    for name in sorted({*mine, *theirs}):
        if name not in mine or name not in theirs:
            return name
        both = mine[name].keys() & theirs[name].keys()
        if any(mine[name][key] != theirs[name][key] for key in both):
            return name
    return None


def _encoders(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for pattern, settings in (("vae", LATENT), ("text_encoder*", TEXT)):
        for file in sorted(folder.glob(f"{pattern}/config.json")):
            config = read_object(file)
            found[file.parent.name] = {name: config[name] for name in settings if name in config}
    return found


def _words(model: Common) -> str:
    named = [f"{name} {shape}" if shape else name for name, shape in model.told.items()]
    return (", ".join(named) or "nothing") + (f" of {model.classes} classes" if model.classes is not None else "")
