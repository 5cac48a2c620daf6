"""How much each weight matters: one contract, `(model, probe) → scores`, for every importance.

Scores map each parameter's name to a tensor of its shape, non-negative, float32: the larger, the more it matters.
They are element-wise, so that a pruning method may sum them over whatever it removes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from edgediff.diffusion.noising import prediction_target
from edgediff.diffusion.schedule import add_noise
from edgediff.errors import BadInputError, StageFailedError, nearest
from edgediff.families import Family

Scores = Mapping[str, Tensor]
LossAt = Callable[[nn.Module, int], Tensor]

TAYLOR_TIMESTEPS = 32  # evenly spaced; enough to see the whole schedule at a thirtieth of its cost


def no_loss(model: nn.Module, timestep: int) -> Tensor:
    """Refuse: the loss of a probe that was given no images.

    Raises: BadInputError, always.
    """
    raise BadInputError("this importance needs calibration images", "give images, or use `magnitude` or `random`")


@dataclass(frozen=True)
class Probe:
    """What an importance may look at besides the weights.

    Args: loss_at: (model, timestep) → scalar loss of the calibration images at that timestep.
          num_train_timesteps: length of the teacher's noise schedule.
          seed: of `random`.
          threshold: of `diff_pruning`: stop at losses under this share of the largest one seen, in [0, 1).
          on_timestep: called after every timestep that was measured.
    """

    loss_at: LossAt = no_loss
    num_train_timesteps: int = 0
    seed: int = 0
    threshold: float = 0.05
    on_timestep: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Importance:
    """A measure, and whether it needs calibration images and a noise schedule."""

    measure: Callable[[nn.Module, Probe], Scores]
    needs_data: bool


class Squares(Mapping[str, Tensor]):
    """The squares of weights, in float32, each computed when it is asked for.

    All at once would be a second copy of the teacher, which for SDXL is 10 GB.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def __getitem__(self, name: str) -> Tensor:
        """Return the squares of one parameter."""
        return self.weights[name].detach().float() ** 2

    def __iter__(self) -> Iterator[str]:
        """Visit the parameters' names."""
        return iter(self.weights)

    def __len__(self) -> int:
        """Return the number of parameters."""
        return len(self.weights)


def magnitude(model: nn.Module, probe: Probe) -> Scores:
    """Return w², so that a channel's sum is its squared L2 norm (Li et al. 2017)."""
    return Squares(dict(model.named_parameters()))


def random(model: nn.Module, probe: Probe) -> Scores:
    """Return uniform scores in [0, 1) drawn from `probe.seed`: the baseline that every importance has to beat."""
    generator = torch.Generator().manual_seed(probe.seed)
    return {
        name: torch.rand(weight.shape, generator=generator).to(weight.device)
        for name, weight in model.named_parameters()
    }


def taylor(model: nn.Module, probe: Probe) -> Scores:
    """Return Σ_t |w · ∂L_t/∂w| over evenly spaced timesteps: the first-order change of each loss when w is removed.

    Molchanov et al. 2019, with one loss a timestep.
    """
    scores = _zeros(model)
    count = min(TAYLOR_TIMESTEPS, probe.num_train_timesteps)
    for i in range(count):
        gradients = _gradients(model, _loss(model, probe, i * probe.num_train_timesteps // count))
        for name, weight in model.named_parameters():
            scores[name] += (weight.detach() * gradients[name]).abs()
    return scores


def diff_pruning(model: nn.Module, probe: Probe) -> Scores:
    """Return |w · Σ_t ∂L_t/∂w| over the timesteps that still carry content (Diff-Pruning, Fang et al. 2023).

    Timesteps are visited from 0 upward, as in the paper. The noisier the input, the easier the noise is to predict, so
    the first loss under `threshold` times the largest one seen ends the sum, itself excluded: later gradients are
    small, and mostly noise.
    """
    total = _zeros(model)
    largest = 0.0
    for timestep in range(probe.num_train_timesteps):
        loss = _loss(model, probe, timestep)
        largest = max(largest, loss.item())
        if loss.item() < probe.threshold * largest:
            break
        for name, gradient in _gradients(model, loss).items():
            total[name] += gradient
    return {name: (weight.detach() * total[name]).abs() for name, weight in model.named_parameters()}


IMPORTANCES: dict[str, Importance] = {
    "magnitude": Importance(magnitude, needs_data=False),
    "random": Importance(random, needs_data=False),
    "taylor": Importance(taylor, needs_data=True),
    "diff_pruning": Importance(diff_pruning, needs_data=True),
}


def importance_scores(
    name: str,
    model: nn.Module,
    family: Family,
    *,
    x0: Tensor | None = None,
    scheduler: DDPMScheduler | None = None,
    conditioning: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    threshold: float = 0.05,
    on_timestep: Callable[[], None] = lambda: None,
) -> Scores:
    """Return the scores of every parameter of a model, which is left untouched: no gradients, no dtype change.

    What needs data works on a float32 copy, so teachers in half precision are scored like any other.

    Args: name: one of `IMPORTANCES`.
          x0: (B, C, H, W) clean images in [-1, 1], for the measures that need data.
          scheduler: the teacher's noise schedule; its prediction type says what the loss compares with.
          conditioning: further arguments of the forward, one row per image.
          seed: of `random`, and of the noise on x0: the same at every timestep, so that losses compare.
          threshold: of `diff_pruning`, a share of the largest loss in [0, 1).
          on_timestep: called after every timestep that was measured, at most `timesteps(name, scheduler)` times.

    Raises: BadInputError for an unknown name, missing images or schedule, a threshold out of range; StageFailedError
    when a loss is not finite.
    """
    if name not in IMPORTANCES:
        raise BadInputError(f"importance is unknown: {name}", nearest(name, IMPORTANCES))
    if not 0 <= threshold < 1:
        raise BadInputError(f"threshold must be in [0, 1): {threshold}", "the paper uses 0.05")
    probe = Probe(seed=seed)
    if IMPORTANCES[name].needs_data:
        if x0 is None or scheduler is None:
            raise BadInputError(
                f"importance `{name}` needs clean images and a noise schedule", "give both, or use `magnitude`"
            )
        loss_at = denoising_loss(family, x0, scheduler, seed, conditioning)
        probe = Probe(loss_at, scheduler.config["num_train_timesteps"], seed, threshold, on_timestep)
    else:
        return IMPORTANCES[name].measure(model, probe)
    # Dropout would make the losses of two timesteps incomparable, hence eval.
    twin = copy.deepcopy(model).float().eval().requires_grad_(True)
    with torch.enable_grad():
        return IMPORTANCES[name].measure(twin, probe)


def timesteps(name: str, scheduler: DDPMScheduler) -> int:
    """Return how many timesteps an importance measures at most."""
    total = scheduler.config["num_train_timesteps"]
    return {"taylor": min(TAYLOR_TIMESTEPS, total), "diff_pruning": total}.get(name, 0)


def denoising_loss(
    family: Family,
    x0: Tensor,
    scheduler: DDPMScheduler,
    seed: int = 0,
    conditioning: Mapping[str, Tensor] | None = None,
) -> LossAt:
    """Return (model, timestep) → mean squared error of the prediction at that timestep (Ho et al. 2020, L_simple).

    Args: x0: (B, C, H, W) clean images in [-1, 1]. One noise, drawn from `seed`, serves all timesteps.
    Raises: BadInputError for an unknown prediction type.
    """
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))

    def loss_at(model: nn.Module, timestep: int) -> Tensor:
        device = next(model.parameters()).device
        clean, eps = x0.to(device, torch.float32), noise.to(device)
        timesteps: Any = torch.full((len(x0),), timestep, device=device)  # diffusers asks for an IntTensor, takes long
        target = prediction_target(scheduler, clean, eps, timesteps)
        rows = {name: value.to(device) for name, value in (conditioning or {}).items()}
        prediction = family.prediction(model, add_noise(scheduler, clean, eps, timesteps), timesteps, **rows)
        return nn.functional.mse_loss(prediction, target)

    return loss_at


def _zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}


def _loss(model: nn.Module, probe: Probe, timestep: int) -> Tensor:
    loss = probe.loss_at(model, timestep)
    if not torch.isfinite(loss):
        raise StageFailedError(
            f"calibration loss is not finite at timestep {timestep}: {loss.item()}",
            "check the teacher's weights and that the images are in [-1, 1]",
        )
    probe.on_timestep()
    return loss


def _gradients(model: nn.Module, loss: Tensor) -> Scores:
    """Return ∂loss/∂w without touching `.grad`; zero for parameters that the loss does not reach."""
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights, materialize_grads=True), strict=True))
