"""Singular Value Scaling (Kim & Yoo, AAAI 2025): pruned weights, refined for the training to come.

What pruning leaves is often ruled by a few singular vectors, in whose directions training then stays. Taking the square
root of the singular values brings them closer together and leaves the vectors as they are.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

BIAS_EPS = 1e-8
SCALED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.GroupNorm, nn.LayerNorm)


def scaled(weight: Tensor, keep_norm: bool = False) -> Tensor:
    """Return U √Σ Vᵀ of a weight W = U Σ Vᵀ.

    Args: weight: (out, in, ...); everything after the first axis counts as one.
          keep_norm: times ‖Σ‖ / ‖√Σ‖, so that the Frobenius norm stays; then a flat spectrum changes nothing.
    """
    u, sigma, v = torch.linalg.svd(weight.detach().flatten(1).float(), full_matrices=False)
    root = sigma.sqrt()
    if keep_norm and sigma[0] > 0:
        root = root * (sigma.norm() / root.norm())
    return (u * root @ v).view(weight.shape).to(weight.dtype)


@torch.no_grad()
def refine(model: nn.Module, rule: Literal["svs", "svs_norm"]) -> None:
    """Scale the singular values of every linear layer and convolution, in place.

    `svs` is the published rule: the roots as they are, every bias over the root of its norm, to stay in proportion, and
    norms set back to scale 1 and shift 0. It leaves a start for training, not a model that draws. `svs_norm` keeps the
    Frobenius norm of every weight, and biases and norms with it, so that layers stay about as loud as they were.
    """
    for module in model.modules():
        if isinstance(module, SCALED):
            module.weight.copy_(scaled(module.weight, keep_norm=rule == "svs_norm"))
            if rule == "svs" and module.bias is not None:
                module.bias.mul_((module.bias.norm() + BIAS_EPS).rsqrt())
        elif rule == "svs" and isinstance(module, NORMS):
            module.reset_parameters()
