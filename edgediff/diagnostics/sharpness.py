"""How steep and how curved the loss is around a model's weights: flat minima are told from sharp ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgediff.results import Sharpness

RHO = 0.05  # radius in weight space; the default of Foret et al. 2021, "Sharpness-Aware Minimization", ICLR


def sharpness(model: nn.Module, loss: Callable[[nn.Module], Tensor], rho: float = RHO) -> Sharpness:
    """Measure how fast the loss grows where it grows fastest: (L(w + rho g / |g|) - L(w)) / rho, with g its gradient.

    The step is the one that sharpness-aware minimisation takes (Foret et al. 2021); the gradient's norm, which Zhao et
    al. (2022) penalise, is the limit for a small rho, and what the sharpness has beyond it is curvature: rho / 2 times
    that along the gradient. Both depend on the scale of the weights (Dinh et al. 2017): compare models of one shape.

    Args: loss: from a model of this shape to a scalar. `model` is left as it is, without gradients.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = loss(model)
    gradients = torch.autograd.grad(before, parameters, allow_unused=True)
    norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
    moved = copy.deepcopy(model)
    there = [parameter for parameter in moved.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter, gradient in zip(there, gradients, strict=True):
            if gradient is not None and norm > 0:
                parameter.add_(gradient, alpha=float(rho / norm))
        after = loss(moved)
    value = float(before.detach())
    return Sharpness(rho=rho, loss=value, gradient_norm=float(norm), sharpness=(float(after) - value) / rho)
