"""The objective of a distillation: one forward from a taught batch to the loss and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgediff.diffusion import schedule
from edgediff.diffusion.noising import prediction_target
from edgediff.diffusion.parameterisation import convert
from edgediff.diffusion.schedule import FLOW
from edgediff.diffusion.weighting import timestep_weights
from edgediff.distillation.normalisation import TimestepNormalisation
from edgediff.distillation.targets import Targets, TaughtBatch, feature_points, x0_threshold
from edgediff.losses import LOSSES, KDTerms, diffusion
from edgediff.losses.adapters import Adapters
from edgediff.losses.fine_weight import LearnableFineWeight, scheduled
from edgediff.model_folder import Loaded
from edgediff.recipe import TWO_PART_LOSSES, DistillConfig

FIT = ("slope", "intercept")  # of any prediction loss, for the log
PARTS = ("coarse", "fine", "fine_weight")  # of those that have two


class Distillation(nn.Module):
    """The student with whatever else is trained beside it; its forward is diffusion_weight · L_diff + Σ weight · L_kd.

    Every loss is a value a sample; a timestep's weight multiplies it before the mean over the batch. The teacher is
    not part of the module: what it says comes with the batch.
    """

    def __init__(self, student: Loaded, teachers: Sequence[Loaded], config: DistillConfig) -> None:
        """Take all models as loaded: the teachers for the widths of their features and the first one's prediction type.

        Raises: BadInputError for a feature loss that cannot compare them (`targets.feature_points`).
        """
        super().__init__()
        self.student = student.model
        self.family, self.scheduler, self.config = student.family, student.scheduler, config
        self.own = schedule.prediction_type(student.scheduler)
        self.theirs = schedule.prediction_type(teachers[0].scheduler)
        self.space = config.kd_space or self.own
        self.even_space = FLOW if self.own == FLOW else "v_prediction"
        self.threshold = x0_threshold(teachers[0], config)
        configs = [of.model.config for of in (student, *teachers)]
        points = feature_points(config, [(of.family, of.model.config) for of in (student, *teachers)])
        self.points = points[0]
        if any(LOSSES[name].adapters for name in config.kd):
            self.adapters = Adapters(*map(self.family.feature_widths, configs[:2], points[:2]))
        if config.place.fine_weight == "learnable" and any(name in TWO_PART_LOSSES for name in config.kd):
            self.fine_weight = LearnableFineWeight()
        if config.timestep_weighting == "normalised":
            self.normalisation = TimestepNormalisation(student.scheduler.config.num_train_timesteps)

    def forward(self, batch: TaughtBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss and the detached quantities to log: every term, and the fit of LIFT and PLACE."""
        config = self.config
        prediction, features = self.family.prediction_and_features(
            self.student, self.points, batch.sample, batch.timestep, **batch.conditioning
        )
        target = prediction_target(self.scheduler, batch.x0, batch.noise, batch.timestep)
        terms = {}
        if config.diffusion_weight:
            loss = diffusion(prediction, target, reduction=config.reduction)
            if batch.exchanged is not None:  # x0 is no example of what an exchanged condition asks for
                loss = loss * ~batch.exchanged
            terms["diffusion"] = config.diffusion_weight * self._weighted(loss, batch, self.own)
        quantities: dict[str, Tensor] = {}
        if batch.targets is not None:
            quantities = self._teach(terms, prediction, features, batch, batch.targets)
        total = torch.stack(list(terms.values())).sum(0)
        if config.timestep_weighting == "normalised":
            total = self.normalisation(total, batch.timestep - schedule.cleanest(self.scheduler))
        every = 0 if config.training.precision == "fp16" else config.gradient_norms_every  # unscaled ones vanish in it
        if every and batch.step % every == 0 and self.training:
            quantities |= self._gradient_norms(terms)
        return total.mean(), {**{name: value.detach().mean() for name, value in terms.items()}, **quantities}

    def _teach(
        self,
        terms: dict[str, Tensor],
        prediction: Tensor,
        features: tuple[Tensor, ...],
        batch: TaughtBatch,
        targets: Targets,
    ) -> dict[str, Tensor]:
        """Put the distillation losses into `terms`; return what one prediction loss says, LIFT or PLACE first."""
        config = self.config
        place = (batch.sample, batch.timestep, self.scheduler)
        mine = convert(prediction, *place, self.own, self.space)
        taught = convert(targets.prediction, *place, self.theirs, self.space, threshold=self.threshold)
        quantities: dict[str, Tensor] = {}
        for name, weight in config.kd.items():
            loss = LOSSES[name]
            # What grows with no error of a prediction is weighted as where predictions are as large at every timestep:
            # errors of eps have to count up to 25,000 times as much at high noise as at low, but no correlation has.
            space = self.even_space if loss.scale_free else self.space
            if loss.kind == "prediction":
                found = self._prediction_loss(name, batch.step)(mine, taught, reduction=config.reduction)
                if name in TWO_PART_LOSSES or "slope" not in quantities:
                    quantities |= _logged(name, found)
                terms[name] = weight * self._weighted(found.total, batch, space)
            else:
                maps = self.adapters(features) if loss.adapters else features
                found = loss.function(maps, targets.features, reduction=config.reduction)
                terms[name] = weight * self._weighted(found, batch, space)
        return quantities

    def _prediction_loss(self, name: str, step: int) -> Any:
        """Return a prediction loss with its settings bound."""
        if name not in TWO_PART_LOSSES:
            return LOSSES[name].function
        settings = self.config.place.model_dump(exclude={"fine_weight"})
        if name == "lift":
            settings = {key: settings[key] for key in ("terms", "norm")}
        kind = self.config.place.fine_weight
        if kind == "learnable":
            return self.fine_weight(partial(LOSSES[name].function, **settings))
        progress = step / self.config.training.steps
        weight = None if kind == "adaptive" else scheduled(kind, progress)
        return partial(LOSSES[name].function, **settings, fine_weight=weight)

    def _weighted(self, loss: Tensor, batch: TaughtBatch, space: str) -> Tensor:
        """Return a loss (B,), measured in `space`, with the weight of its timesteps."""
        kind = self.config.timestep_weighting
        if kind == "normalised":  # by what the whole loss was before
            return loss
        return loss * timestep_weights(kind, self.scheduler, batch.timestep, space)

    def _gradient_norms(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the norm of every term's own gradient with respect to the student."""
        # What FSDP 2 cuts gets this method. Its parameters may be whole here, but a backward outside of its own would
        # free them.
        if any(hasattr(module, "set_requires_gradient_sync") for module in self.modules()):
            return {}
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        norms = {}
        for name, term in terms.items():
            gradients = torch.autograd.grad(term.mean(), parameters, retain_graph=True, allow_unused=True)
            norms[f"grad_norm.{name}"] = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        return norms


def _logged(name: str, terms: KDTerms) -> dict[str, Tensor]:
    """Return what a prediction loss says of itself, for the log: the fit, and its parts where it has any."""
    shown = FIT + PARTS if name in TWO_PART_LOSSES else FIT
    return {quantity: getattr(terms, quantity).detach().mean() for quantity in shown}
