"""Losses made comparable between timesteps by their own running mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgediff.losses.terms import batch_sum

BINS = 20  # a bin of 50 timesteps sees three samples of a batch of 64
DECAY = 0.99


class TimestepNormalisation(nn.Module):
    """Divides every sample's loss by the running mean of its timestep's bin, so that all timesteps count alike.

    What a hand-made weighting guesses (which timesteps are hard in this space), measured; the mean is a buffer, so it
    is part of the training's state. What EDM2 learns with a network (Karras et al. 2024), counted.
    """

    mean: Tensor

    def __init__(self, num_train_timesteps: int) -> None:
        super().__init__()
        self.num_train_timesteps = num_train_timesteps
        self.register_buffer("mean", torch.zeros(BINS))  # 0: nothing seen yet

    def forward(self, loss: Tensor, timestep: Tensor) -> Tensor:
        """Return the loss (B,) over its bin's mean; the mean, of all ranks, takes this batch in first.

        Args: timestep: (B,) int64, counted from 0 at the cleanest one, whatever the schedule counts from.
        """
        bins = timestep * BINS // self.num_train_timesteps
        sums = torch.zeros_like(self.mean).index_add(0, bins, loss.detach().float())
        counts = torch.zeros_like(self.mean).index_add(0, bins, torch.ones_like(loss, dtype=torch.float32))
        if self.training:
            sums, counts = batch_sum(sums), batch_sum(counts)
            now = sums / counts.clamp(min=1)
            moved = torch.where(self.mean == 0, now, torch.lerp(now, self.mean, DECAY))
            self.mean.copy_(torch.where(counts > 0, moved, self.mean))
        return loss / self.mean[bins].clamp(min=torch.finfo(torch.float32).tiny)
