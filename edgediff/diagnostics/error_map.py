"""Where and when a student errs: its error at every place of the sample, by timestep."""

from __future__ import annotations

import torch
from torch import Tensor

from edgediff.data.images import Images
from edgediff.data.order import evenly
from edgediff.diagnostics.held_out import held_out, predict
from edgediff.model_folder import Loaded


def error_map(
    teacher: Loaded, student: Loaded, samples: Images, *, timesteps: Tensor, num_images: int, batch_size: int
) -> dict[str, Tensor]:
    """Return where the student's prediction differs from the teacher's, in the teacher's prediction type.

    Returns: `timesteps` (T,) int64, and `squared_error` (T, H, W) float32, the mean over samples and channels.
    Raises: StageFailedError for a prediction that is not finite.
    """
    indices = evenly(len(samples), num_images)
    maps = torch.zeros(len(timesteps), *samples.shape[1:])
    for batch in held_out(samples, indices, batch_size):
        for place, timestep in enumerate(timesteps):
            at = timestep.expand(len(batch.x0))
            expected, said = (
                predict(name, of, batch, at, teacher) for name, of in (("teacher", teacher), ("student", student))
            )
            maps[place] += (said.value - expected.value).square().mean(1).sum(0).cpu() / len(indices)
    return {"timesteps": timesteps, "squared_error": maps}
