"""How steep and how curved the loss is around a model's weights: flat minima are told from sharp ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edgediff.results import Sharpness

RHO = 0.05  # radius in weight space; the default of Foret et al. 2021, "Sharpness-Aware Minimization", ICLR


Part = Callable[[nn.Module], Tensor]


def sharpness(model: nn.Module, parts: Sequence[Part], rho: float = RHO) -> Sharpness:
    """Measure how fast the loss grows where it grows fastest: (L(w + rho g / |g|) - L(w)) / rho, with g its gradient.

    The step is the one that sharpness-aware minimisation takes (Foret et al. 2021); the gradient's norm, which Zhao et
    al. (2022) penalise, is the limit for a small rho, and what the sharpness has beyond it is curvature: rho / 2 times
    that along the gradient. Both depend on the scale of the weights (Dinh et al. 2017): compare models of one shape.

    Args: model: left as it is, without gradients.
          parts: from a model of this shape to scalars, which add up to the loss; the memory of one is held at a time.
    """
    moved = copy.deepcopy(model).requires_grad_()
    before = 0.0
    for part in parts:
        value = part(moved)
        value.backward()
        before += float(value.detach())
    gradients = {parameter: parameter.grad for parameter in moved.parameters() if parameter.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    with torch.no_grad():
        for parameter, gradient in gradients.items():
            if norm > 0:
                parameter.add_(gradient, alpha=float(rho / norm))
        after = sum(float(part(moved)) for part in parts)
    return Sharpness(rho=rho, loss=before, gradient_norm=float(norm), sharpness=(after - before) / rho)
