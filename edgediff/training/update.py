"""The gradient of one update, to which every process adds its part.

The samples of an update are numbered through: process r of R takes, in its forward m, the part m·R + r of
`batch_size` positions. So two processes see what one sees with twice the batch, or with twice the accumulation.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from edgediff.data.order import mixed, step_seed
from edgediff.recipe import TrainingConfig
from edgediff.training import finite, processes
from edgediff.training.precision import autocast
from edgediff.training.sharding import whole


class Batches(Protocol):
    """What is learned from: a pure function of the positions, which count samples since the start of the training."""

    def __call__(self, step: int, positions: Tensor, /) -> Any:
        """Return the batch of training step `step` (from 0) at the positions (B,), in the form the model takes."""


class Update:
    """One process's part in the gradient of every update."""

    def __init__(
        self,
        network: nn.Module,
        batches: Batches,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        accelerator: Accelerator,
    ) -> None:
        self.network, self.batches, self.optimizer = network, batches, optimizer
        self.config, self.accelerator = config, accelerator
        self.parameters = list(network.parameters())
        self.device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")

    def gradients(self, step: int, interrupted: threading.Event) -> tuple[dict[str, float], bool]:
        """Leave the clipped gradient of step `step` (from 0) in the parameters.

        Returns: loss, quantities and `grad_norm`, means over all forwards of all processes, and whether any process
        was interrupted. All of it travels in one exchange, and the device is waited for once.
        """
        config, accelerator = self.config, self.accelerator
        together, forwards = accelerator.num_processes, config.gradient_accumulation
        seed = step_seed(config.seed, step)
        names: list[str] = []
        sums = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for forward in range(forwards):
            _seed(mixed(seed, forward * together + accelerator.process_index), self.device)
            positions = self._positions(step, forward)
            with nullcontext() if forward + 1 == forwards else accelerator.no_sync(self.network):
                with autocast(config.precision, self.device):
                    loss, quantities = self.network(self.batches(step, positions))
                accelerator.backward(self.scaler.scale(loss))  # divides by the number of forwards
            names = ["loss", *quantities, "grad_norm"]
            found = torch.stack([value.detach().float() for value in (loss, *quantities.values())])
            sums = sums + found
        self.scaler.unscale_(self.optimizer)
        norm = whole(accelerator.clip_grad_norm_(self.parameters, config.grad_clip))
        measured = torch.cat([sums / forwards, torch.stack([norm, norm.new_tensor(float(interrupted.is_set()))])])
        if together > 1:
            measured = accelerator.reduce(measured, "mean")
        *means, stop = measured.tolist()
        values = dict(zip(names, means, strict=True))
        if self.scaler.is_enabled():
            values["loss_scale"] = self.scaler.get_scale()
        return values, stop > 0

    def _positions(self, step: int, forward: int) -> Tensor:
        """Return the positions (B,) of this process in a forward of a step."""
        accelerator, config = self.accelerator, self.config
        part = (step * config.gradient_accumulation + forward) * accelerator.num_processes + accelerator.process_index
        return torch.arange(part * config.batch_size, (part + 1) * config.batch_size)

    def not_finite(self, step: int) -> list[str]:
        """Return what is not finite of a step's batches in any process; they are computed again for it."""
        found: set[str] = set()
        for forward in range(self.config.gradient_accumulation):
            with autocast(self.config.precision, self.device):
                found.update(finite.not_finite(self.batches(step, self._positions(step, forward))))
        return sorted(set().union(*processes.of_all(sorted(found))))

    def apply(self) -> None:
        """Move the parameters; in fp16 only where no gradient overflowed."""
        self.scaler.step(self.optimizer)
        self.scaler.update()


def _seed(seed: int, device: torch.device) -> None:
    """Seed what dropout and random groups draw from, without the stack traces that torch.manual_seed keeps."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def diverged(values: Mapping[str, float]) -> bool:
    """Tell whether a step cannot be taken; an overflow under a loss scale above 1 only asks for a smaller scale."""
    if not math.isfinite(values["loss"]):
        return True
    return not math.isfinite(values["grad_norm"]) and values.get("loss_scale", 1.0) <= 1.0
