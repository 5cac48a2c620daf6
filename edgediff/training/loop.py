"""The training loop: objective, optimiser, average, checkpoints, log.

A step is a pure function of the state and of (seed, step): data order and noise come from generators made for the
step, so a run that was killed and resumed ends with the weights of one that never was, bit for bit on a CPU.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor, nn

from edgediff.artifacts import naming_full_disk
from edgediff.data.order import step_generator
from edgediff.errors import BadInputError, InterruptedStageError, StageFailedError
from edgediff.interrupts import deferred_interrupt
from edgediff.recipe import TrainingConfig
from edgediff.training import checkpoint
from edgediff.training.ema import EMA
from edgediff.training.precision import autocast

LOG_NAME = "train.jsonl"
# What may differ between an interrupted run and the one that resumes it: how long, how fast, how often saved.
ADJUSTABLE = {"steps", "learning_rate", "lr_schedule", "warmup_steps", "grad_clip", "checkpoint_every"}


class Objective(Protocol):
    """What is minimised."""

    def __call__(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the scalar loss of training step `step` and the quantities to log beside it."""


@dataclass(frozen=True)
class StepRecord:
    """One finished step: `step` counts from 1, `seconds` is its duration, `values` what the log holds."""

    step: int
    seconds: float
    values: dict[str, float]


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training can say of itself; the model holds the averaged weights."""

    steps: int
    steps_per_second: float
    resumed_at: list[int]
    settings: list[dict[str, Any]]  # the adjustable settings, with the step from which they held


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of step `step` (from 0): linear warm-up, then constant or a cosine to 0."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.lr_schedule == "constant":
        return config.learning_rate * warmup
    progress = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train(
    model: nn.Module,
    objective: Objective,
    config: TrainingConfig,
    *,
    checkpoints: Path,
    log: Path,
    identity: str,
    resume: bool,
    on_step: Callable[[StepRecord], None],
) -> TrainingResult:
    """Train `model` in place for `config.steps` steps and leave the averaged weights in it.

    Args: checkpoints: folder of the resumable state, written every `config.checkpoint_every` steps.
          log: JSON lines, one a step, with the objective's quantities, `loss`, `learning_rate` and `grad_norm`.
          identity: digest of everything the result depends on beside `config`; a state of another is refused.
    Raises: BadInputError when a state exists and `resume` is false, or belongs to another training, or has more
            steps behind it than `config.steps`;
            StageFailedError at the first non-finite loss or gradient, after rolling the log back to the state;
            InterruptedStageError on SIGINT, after saving the state.
    """
    path = checkpoints / checkpoint.FILE_NAME
    device = next(model.parameters()).device
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.999), fused=True
    )
    ema = EMA(model, config.ema_decay)
    facts: dict[str, Any] = {
        "identity": f"{identity}:{config.model_dump_json(exclude=ADJUSTABLE)}",
        "step": 0,
        "resumed_at": [],
        "settings": [{"from_step": 0, **config.model_dump(include=ADJUSTABLE)}],
    }
    if path.exists():
        facts = _resumed_facts(path, facts["identity"], config, resume)
        checkpoint.load(path, model=model, ema=ema, optimizer=optimizer)
    start = facts["step"]
    model.train()
    clock = time.perf_counter()
    with _log_after(log, start) as lines, deferred_interrupt() as interrupted:

        def save(step: int) -> None:
            # The log first, and through to the disk: it may be ahead of the state after a kill, never behind it.
            lines.flush()
            os.fsync(lines.fileno())
            facts["step"] = step
            checkpoint.save(path, model=model, ema=ema, optimizer=optimizer, facts=facts)

        for step in range(start, config.steps):
            began = time.perf_counter()
            generator = step_generator(config.seed, step)
            torch.manual_seed(generator.initial_seed())  # dropout draws from the global generator
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            with autocast(config.precision, device):
                loss, quantities = objective(step, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip))
            values = {"loss": float(loss.detach()), **quantities, "grad_norm": norm, "learning_rate": group["lr"]}
            if not math.isfinite(values["loss"]) or not math.isfinite(norm):
                lines.flush()
                _truncate(log, facts["step"])
                raise _non_finite(step + 1, facts["step"], values, config, fresh=step > start or step == 0)
            optimizer.step()
            ema.update(model, step)
            lines.write(json.dumps({"step": step + 1, **values}) + "\n")
            on_step(StepRecord(step + 1, time.perf_counter() - began, values))
            stop = interrupted.is_set()
            if stop or (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                save(step + 1)
            if stop:
                raise _interrupted(step + 1, config)
        if interrupted.is_set():  # while the last state was written
            raise _interrupted(config.steps, config)
    done = config.steps - start
    ema.copy_to(model)
    model.eval()
    elapsed = time.perf_counter() - clock
    return TrainingResult(config.steps, done / elapsed if done else 0.0, facts["resumed_at"], facts["settings"])


def _resumed_facts(path: Path, identity: str, config: TrainingConfig, resume: bool) -> dict[str, Any]:
    facts = checkpoint.read_facts(path)
    if not resume:
        raise BadInputError(
            f"an unfinished training stands at step {facts['step']}: `{path}`",
            "add `--resume` to continue it, or delete that file to start again",
        )
    if facts["identity"] != identity:
        raise BadInputError(
            f"the checkpoint belongs to a training with {_difference(facts['identity'], identity)}: `{path}`",
            "resume with the recipe it was started with, or delete that file to start again",
        )
    if facts["step"] > config.steps:
        raise BadInputError(
            f"the checkpoint stands at step {facts['step']}, beyond the {config.steps} steps asked for: `{path}`",
            "ask for at least as many steps, or delete that file to start again",
        )
    facts["resumed_at"].append(facts["step"])
    settings = config.model_dump(include=ADJUSTABLE)
    last = {key: value for key, value in facts["settings"][-1].items() if key != "from_step"}
    if last != settings:
        facts["settings"].append({"from_step": facts["step"], **settings})
    return facts


def _difference(saved: str, wanted: str) -> str:
    """Word what differs between two identities: training settings by name, anything else as the inputs."""
    (saved_inputs, saved_settings), (inputs, settings) = (text.split(":", 1) for text in (saved, wanted))
    if saved_inputs != inputs:
        return "another model, objective or data"
    before, after = json.loads(saved_settings), json.loads(settings)
    differing = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return ", ".join(f"{key} {before.get(key)}, not {after.get(key)}" for key in differing)


def _interrupted(step: int, config: TrainingConfig) -> InterruptedStageError:
    return InterruptedStageError(
        f"training stopped at step {step} of {config.steps}",
        "run the same command again with `--resume` to continue from there",
    )


def _non_finite(
    step: int, good: int, values: dict[str, float], config: TrainingConfig, *, fresh: bool
) -> StageFailedError:
    """Word the failure of `step`; `fresh` says that it is not the very first step after a saved state was loaded."""
    broken = ", ".join(f"{name} {value}" for name, value in values.items() if not math.isfinite(value))
    lower = f"a lower `learning_rate`, such as {config.learning_rate / 3:.1g}"
    return StageFailedError(
        f"training met a non-finite value at step {step} ({broken}); rolled back to step {good}",
        f"go on from there with `--resume` and {lower}"
        if fresh
        else f"the saved state itself has diverged: delete its folder, and start again with {lower}",
    )


@contextmanager
def _log_after(path: Path, step: int) -> Iterator[TextIO]:
    """Open the log for the steps after `step`, without the lines that a kill left behind the saved state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _truncate(path, step)
    with naming_full_disk(path), path.open("a", encoding="utf-8") as file:
        yield file


def _truncate(path: Path, step: int) -> None:
    """Drop the log's lines of later steps, and whatever follows the first line that is not whole."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = 0
        for line in file:
            try:
                whole = line.endswith(b"\n") and json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError):
                whole = False
            if not whole:
                break
            end += len(line)
        file.truncate(end)
