"""The one contract of everything that predicts: PyTorch model, ONNX session, engine."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Denoiser(Protocol):
    """A model on a backend.

    Attributes: backend: its name in reports; device: `cpu` or `cuda`; precision: of its weights.
    """

    backend: str
    device: str
    precision: str

    def __call__(self, sample: Tensor, timestep: Tensor, **conditioning: Tensor) -> Tensor:
        """Predict from `sample` (B, C, H, W) float32 and `timestep` (B,), on the CPU or the own device.

        Timesteps are int64, and float32 where a flow-matching sampler visits fractions of them.

        Returns: (B, C, H, W) float32 in the model's own prediction type, on the device of `sample`.
        """
