"""One prediction in several spaces: eps, v, x0 and flow say the same of a known x_t, each through its own affine map.

With x_t = a·x0 + s·eps (`schedule`): v = a·eps - s·x0 (Salimans & Ho 2022), and flow = eps - x0, where a + s = 1.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from edgediff.diffusion.noising import check_prediction_type
from edgediff.diffusion.schedule import FLOW, coefficients
from edgediff.errors import BadInputError

Threshold = Literal["none", "clip", "dynamic"]
SMALLEST = 1e-5  # of a or s as a divisor; a schedule of zero terminal SNR has a = 0 at its last timestep


def snr(scheduler: Any, timestep: Tensor) -> Tensor:
    """Return the signal-to-noise ratio a² / s² at the timesteps (B,), on their device."""
    a, s = coefficients(scheduler, timestep, timestep)
    return (a / s.clamp(min=SMALLEST)).square()


def convert(
    prediction: Tensor,
    sample: Tensor,
    timestep: Tensor,
    scheduler: Any,
    source: str,
    target: str,
    *,
    threshold: Threshold = "none",
) -> Tensor:
    """Return a prediction of type `source` at x_t = `sample` as one of type `target`, both (B, C, H, W).

    Exact, linear in the prediction and differentiable, in float32 at least, when `threshold` is `none`.

    Args: scheduler: gives alpha_bar, `clip_sample_range` and the settings of dynamic thresholding.
          threshold: what happens to the x0 on the way, because a = sqrt(alpha_bar) amplifies an error of eps by s / a,
              157 times at the noisiest timestep of DDPM's schedule: nothing; `clip` to the schedule's range; or
              `dynamic`, to the reach of its own. Without a change of type nothing is touched.
    Raises: BadInputError for an unknown type.
    """
    for name in {source, target} - {FLOW}:
        check_prediction_type(name)
    if source == target:
        return prediction
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    prediction, sample = prediction.to(dtype), sample.to(dtype)
    a, s = coefficients(scheduler, timestep, prediction)
    if FLOW in (source, target):
        return _of_straight_path(prediction, sample, s, source, target)
    if threshold == "none" and "sample" not in (source, target):
        # Between eps and v the way through x0 would divide by a, which is all but 0 at high noise, and back.
        if source == "v_prediction":
            return a * prediction + s * sample
        return (prediction - s * sample) / a.clamp(min=SMALLEST)
    if source == "epsilon":
        x0 = (sample - s * prediction) / a.clamp(min=SMALLEST)
    else:
        x0 = prediction if source == "sample" else a * sample - s * prediction
    x0 = thresholded(x0, scheduler, threshold)
    if target == "sample":
        return x0
    eps = (sample - a * x0) / s.clamp(min=SMALLEST)
    return eps if target == "epsilon" else a * eps - s * x0


def _of_straight_path(prediction: Tensor, sample: Tensor, s: Tensor, source: str, target: str) -> Tensor:
    """Convert between the velocity of flow matching and x0, where x_t = x0 + s·velocity; its samples have no range.

    Raises: BadInputError for a type of another kind of schedule.
    """
    if {source, target} != {FLOW, "sample"}:
        raise BadInputError(
            f"a flow-matching model does not predict {target if source == FLOW else source}",
            "leave `student_prediction` and `kd_space` out for flow-matching teachers",
        )
    if source == FLOW:
        return sample - s * prediction
    return (sample - prediction) / s.clamp(min=SMALLEST)


def thresholded(x0: Tensor, scheduler: Any, threshold: Threshold) -> Tensor:
    """Return the x0 estimates (B, C, H, W) held to the range of data."""
    if threshold == "none":
        return x0
    limit = scheduler.config.clip_sample_range
    if threshold == "clip":
        return x0.clamp(-limit, limit)
    # The given percentile of |x0|, at least the data's range (Saharia et al. 2022). A sampler then shrinks x0 to that
    # range; in a target that would move every pixel, and the eps made of it a / s times as much.
    share = scheduler.config.dynamic_thresholding_ratio
    reach = torch.stack([torch.quantile(own, share) for own in x0.flatten(1).abs()])  # of all at once it takes 2**24
    reach = reach.clamp(min=limit).view(-1, *(1,) * (x0.dim() - 1))
    return x0.clamp(-reach, reach)
