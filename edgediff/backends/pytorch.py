"""PyTorch, eager."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgediff.families import Family


class PyTorchDenoiser:
    """A stock model as a `Denoiser`."""

    backend = "pytorch"
    precision = "fp32"

    def __init__(self, model: Any, family: Family, device: str = "cpu") -> None:
        """Take a model in evaluation mode; it is moved to `device`."""
        self.model, self.family, self.device = model.to(device), family, device

    @torch.inference_mode()
    def __call__(self, sample: Tensor, timestep: Tensor, **conditioning: Tensor) -> Tensor:
        """See `Denoiser`."""
        inputs = {name: value.to(self.device) for name, value in conditioning.items()}
        prediction = self.family.prediction(self.model, sample.to(self.device), timestep.to(self.device), **inputs)
        return prediction.to(sample.device)
