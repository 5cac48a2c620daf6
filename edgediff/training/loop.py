"""The training loop: objective, optimiser, average, checkpoints, log; on one process, or on several as one.

A step is a pure function of the state and of (seed, step, part of the batch): data order and noise come from positions,
dropout from a generator made for the part, so a run that was killed and resumed ends with the weights of one that never
was, bit for bit on a CPU.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn

from edgediff.errors import InterruptedStageError, StageFailedError
from edgediff.interrupts import deferred_interrupt
from edgediff.recipe import TrainingConfig
from edgediff.training import checkpoint, processes
from edgediff.training import log as training_log
from edgediff.training.alone import alone
from edgediff.training.ema import EMA
from edgediff.training.facts import starting_facts
from edgediff.training.learning_rate import learning_rate
from edgediff.training.memory import naming_full_memory, of_a_step
from edgediff.training.networks import running_as
from edgediff.training.precision import attention_kernel, check_precision, settled
from edgediff.training.sharding import copy_buffers
from edgediff.training.tracking import check_trackers, tracking
from edgediff.training.update import Batches, Update, diverged

LOG_NAME = "train.jsonl"


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
    global_batch: int  # samples of an update, over all processes
    counts: dict[str, float]  # `steps` that led here and their `seconds`, and what the caller counted in them
    resumed_at: list[int]
    settings: list[dict[str, Any]]  # the adjustable settings, with the step from which they held

    @property
    def steps_per_second(self) -> float:
        """Of all steps that led here, in whatever parts they were trained; 0 where states did not count them yet."""
        return self.counts["steps"] / self.counts["seconds"] if self.counts.get("seconds") else 0.0


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainingConfig,
    *,
    checkpoints: Path,
    log: Path,
    identity: Mapping[str, Any],
    resume: bool,
    on_step: Callable[[StepRecord], None],
    snapshots: Collection[int] = (),
    on_snapshot: Callable[[int], None] = lambda step: None,
    counts: Callable[[], Mapping[str, float]] = dict,
) -> TrainingResult:
    """Train `model` in place for `config.steps` steps and leave the averaged weights in it.

    Every process of a group calls it with the same arguments, the model on its own device (`processes.device()`), and
    sees the same folder; all of them end alike, in the result or in the error.

    Args: model: from a batch to its scalar loss, a mean over samples, and the quantities to log beside it, scalar
          tensors; whatever it holds is trained.
          checkpoints: folder of the resumable state, written every `config.checkpoint_every` steps.
          log: JSON lines, one a step, with the model's quantities, `loss`, `learning_rate` and `grad_norm`, means over
          all processes; in fp16 also `loss_scale`, and no `grad_norm` in the steps that it overflowed in, which are
          skipped. The trackers' folders go beside it.
          identity: everything the result depends on beside `config`, as JSON; a state of another is refused.
          on_step: called in the main process.
          snapshots: the numbers of finished steps after which `on_snapshot` is called in the main process, with the
          averaged weights in `model` for that moment. No state says that such a step is finished before the call has
          returned, so a training that is killed meanwhile makes the call again.
          counts: from all processes to numbers, of all of them, since this call; kept in the state and added up over
          the parts of a training.
    Raises: BadInputError when a state exists and `resume` is false, or belongs to another training, or has more
            steps behind it than `config.steps`; when another training writes there or the log is damaged; for a
            precision that this device does not train in, and for a launcher whose engine keeps a state of its own;
            MissingExtraError for a tracker that is not installed; StageFailedError at the first non-finite loss or
            gradient of any process, after rolling the log back to the state, when what is learned from is not finite,
            when a network cannot be compiled, when another process is lost, and when memory does not hold a step;
            InterruptedStageError on SIGINT or SIGTERM to any process, after saving the state.
    """
    device = next(model.parameters()).device
    config = settled(config, device)
    check_precision(config.precision, device)
    check_trackers(config.trackers)
    accelerator = processes.accelerator(config.gradient_accumulation)
    path = checkpoints / checkpoint.FILE_NAME
    with ExitStack() as stack:
        stack.enter_context(processes.naming_lost_process())
        stack.enter_context(alone(checkpoints))
        facts = starting_facts(path, identity, config, processes=accelerator.num_processes, resume=resume)
        start, before = facts["step"], facts["counts"]
        training_log.check(log, start)
        processes.check_agreement({key: facts[key] for key in ("identity", "step")})
        stack.enter_context(naming_full_memory(*of_a_step(config)))
        # FSDP changes the classes of the modules that it cuts, so the caller keeps a model that it never touched; not
        # where memory is for the pieces.
        cut = accelerator.distributed_type == DistributedType.FSDP
        trained = copy.deepcopy(model) if cut else model
        if cut:
            model.cpu()
        trained.train()
        stack.enter_context(running_as(trained, config))
        stack.enter_context(attention_kernel(config.precision, device))
        optimizer = _optimizer(trained, config)
        network, _ = accelerator.prepare(trained, optimizer)
        ema = EMA(trained, config.ema_decay)
        update = Update(network, batches, optimizer, config, accelerator)
        if start:
            checkpoint.load(path, model=trained, ema=ema, optimizer=optimizer)
            update.scaler.load_state_dict(facts.get("grad_scaler", {}))
        lines = show = None
        if accelerator.is_main_process:
            lines = stack.enter_context(training_log.open_log(log, start))
            show = stack.enter_context(tracking(config.trackers, log.parent, facts))
        interrupted = stack.enter_context(deferred_interrupt())

        def save(step: int) -> None:
            if lines is not None:
                lines.flush()  # first: it may be ahead of the state after a kill, never behind it
            facts["step"] = step
            now = {"steps": step - start, "seconds": time.perf_counter() - clock, **counts()}
            facts["counts"] = {name: before.get(name, 0) + value for name, value in now.items()}
            if update.scaler.is_enabled():
                facts["grad_scaler"] = update.scaler.state_dict()
            checkpoint.save(path, model=trained, ema=ema, optimizer=optimizer, facts=facts)
            processes.wait_for_everyone()

        def snapshot(step: int) -> None:
            if cut:
                copy_buffers(trained, model)
            with ema.inside(model):
                if accelerator.is_main_process:
                    on_snapshot(step)

        clock = time.perf_counter()
        for step in range(start, config.steps):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            values, stop = update.gradients(step, interrupted)
            values["learning_rate"] = group["lr"]
            if diverged(values):
                if lines is not None:
                    lines.roll_back(facts["step"])
                if found := update.not_finite(step):
                    raise _unlearnable(step + 1, facts["step"], found)
                raise _non_finite(step + 1, facts["step"], values, config, fresh=step > start or step == 0)
            if not math.isfinite(values["grad_norm"]):
                del values["grad_norm"]  # the scaler skips this step
            update.apply()
            ema.update(step)
            if step + 1 in snapshots:
                snapshot(step + 1)
            if lines is not None and show is not None:
                lines.write(step + 1, values)
                show(step + 1, values)
                on_step(StepRecord(step + 1, time.perf_counter() - began, values))
            if stop or (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                save(step + 1)
            if stop:
                raise _interrupted(step + 1, config)
        if processes.anyone(interrupted.is_set()):  # while the last state was written
            raise _interrupted(config.steps, config)
        if cut:
            copy_buffers(trained, model)
        ema.copy_to(model)
        model.to(device).eval()
    return TrainingResult(
        steps=config.steps,
        global_batch=facts["identity"]["training"]["global_batch"],
        counts=facts["counts"],
        resumed_at=facts["resumed_at"],
        settings=facts["settings"],
    )


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        trained, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.999), fused=True
    )


def _interrupted(step: int, config: TrainingConfig) -> InterruptedStageError:
    return InterruptedStageError(
        f"training stopped at step {step} of {config.steps}",
        "run the same command again with `--resume` to continue from there",
    )


def _unlearnable(step: int, good: int, found: list[str]) -> StageFailedError:
    """Word the failure of `step` over what was to be learned there."""
    return StageFailedError(
        f"what training learns from is not finite at step {step} ({', '.join(found)}); rolled back to step {good}",
        "a lower learning rate would not help: check the images, and the teacher's weights where a teacher answers; "
        "in half precision, train in fp32 (`precision`) in another run folder",
    )


def _non_finite(
    step: int, good: int, values: Mapping[str, float], config: TrainingConfig, *, fresh: bool
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
