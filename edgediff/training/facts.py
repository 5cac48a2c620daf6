"""What a checkpoint says beside its tensors: of which training it is, at which step, under which settings."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgediff.artifacts import without
from edgediff.errors import BadInputError
from edgediff.recipe import WATCHING, TrainingConfig, differences
from edgediff.training import checkpoint

OF_STEPS = ("learning_rate", "lr_schedule", "warmup_steps", "grad_clip")  # of those that are still to be taken
# What may differ between an interrupted training and the one that resumes it: how long, how fast, how watched and
# saved, and on what machines. The batch of an update may not, however it is put together.
ADJUSTABLE = {
    *("steps", *OF_STEPS, *WATCHING),
    *("batch_size", "gradient_accumulation", "gradient_checkpointing", "compile"),
}
ONCE_FIXED = ("distill.gradient_norms_every",)  # older states and some callers say it, and it decides nothing


# Of an identity, by hashes, which tell a reader nothing.
HASHED = {"images": "images", "teacher": "teacher", "pruned": "pruned model"}


def changed_settings(path: Path, config: TrainingConfig) -> list[str]:
    """Say what of the state's settings is another from here on, in one sentence; nothing where there is none."""
    if not path.exists():
        return []
    asked = config.model_dump(mode="json", include={"steps", *OF_STEPS})
    last = checkpoint.read_facts(path)["settings"][-1]
    found = differences({key: value for key, value in last.items() if key in asked}, asked)
    return [f"from here on with other settings than before: {'; '.join(found.values())}"] if found else []


def _with_what(differing: Mapping[str, str]) -> str:
    """Word what a training is to be resumed with."""
    hashed = [f"the {words}" for key, words in HASHED.items() if key in differing]
    return " and ".join([*hashed, *(["the recipe"] if len(hashed) < len(differing) else [])])


def starting_facts(
    path: Path, identity: Mapping[str, Any], config: TrainingConfig, *, processes: int, resume: bool
) -> dict[str, Any]:
    """Return the facts with which a training begins: those of the state at `path`, or of none.

    `run` tells it from every other training, and stays its own however often it is resumed.

    Args: identity: everything the result depends on beside `config`, as JSON.
    Raises: BadInputError when a state exists and `resume` is false, or belongs to another training, or has more
            steps behind it than `config.steps`; CorruptArtifactError when it is not a complete checkpoint.
    """
    settings = {**config.model_dump(mode="json", include=ADJUSTABLE), "processes": processes}
    fixed = {
        **config.model_dump(mode="json", exclude=ADJUSTABLE),
        "global_batch": config.global_batch(processes),
    }
    # Through JSON, in which a saved one comes back.
    wanted = without(json.loads(json.dumps({**identity, "training": fixed})), ONCE_FIXED)
    if not path.exists():
        return {
            "identity": wanted,
            "run": uuid.uuid4().hex,
            "step": 0,
            "counts": {},
            "resumed_at": [],
            "settings": [{"from_step": 0, **settings}],
        }
    facts = {"run": uuid.uuid4().hex, "counts": {}, **checkpoint.read_facts(path)}  # older states have neither
    facts["identity"] = without(facts["identity"], ONCE_FIXED)
    if facts["identity"] != wanted:
        found = differences(facts["identity"], wanted)
        difference = "; ".join(f"other {HASHED[key]}" if key in HASHED else words for key, words in found.items())
        hints = [f"resume with {_with_what(found)} it was started with, or delete that file to start again"]
        if "training.global_batch" in found:
            hints.append("`global_batch` is batch_size x gradient_accumulation x processes")
        if "training.precision" in found:
            began = facts["identity"]["training"]["precision"]
            hints.append(f"it began with `precision={began}`, whatever `auto` chooses on this machine")
        raise BadInputError(
            f"the checkpoint belongs to another training ({difference}): `{path}`",
            "; ".join(hints),
        )
    if facts["step"] > config.steps:
        raise BadInputError(
            f"the checkpoint stands at step {facts['step']}, beyond the {config.steps} steps asked for: `{path}`",
            "ask for at least as many steps, or delete that file to start again",
        )
    if not resume:
        state = "a finished" if facts["step"] == facts["settings"][-1]["steps"] else "an unfinished"
        raise BadInputError(
            f"{state} training stands at step {facts['step']}: `{path}`",
            "add `--resume` to go on from there, or delete that file to start again",
        )
    facts["resumed_at"].append(facts["step"])
    last = {key: value for key, value in facts["settings"][-1].items() if key != "from_step"}
    if last != settings:
        facts["settings"].append({"from_step": facts["step"], **settings})
    return facts
