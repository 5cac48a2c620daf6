"""One prediction in three spaces: eps, v and x0 say the same of a known x_t, each through its own affine map.

With a = sqrt(alpha_bar_t) and s = sqrt(1 - alpha_bar_t): x_t = a·x0 + s·eps and v = a·eps - s·x0 (Salimans & Ho 2022).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from edgediff.diffusion.noising import check_prediction_type

Threshold = Literal["none", "clip", "dynamic"]
SMALLEST = 1e-5  # of a or s as a divisor; a schedule of zero terminal SNR has a = 0 at its last timestep


def coefficients(scheduler: Any, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and s of x_t = a·x0 + s·eps at the timesteps (B,), float32 at least, shaped to broadcast over `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    alpha_bar = scheduler.alphas_cumprod.to(like.device, dtype)[timestep.to(like.device)]
    alpha_bar = alpha_bar.view(-1, *(1,) * (like.dim() - 1))
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def snr(scheduler: Any, timestep: Tensor) -> Tensor:
    """Return the signal-to-noise ratio alpha_bar / (1 - alpha_bar) at the timesteps (B,), on their device."""
    alpha_bar = scheduler.alphas_cumprod.to(timestep.device)[timestep]
    return alpha_bar / (1 - alpha_bar)


def predicted_x0(prediction: Tensor, sample: Tensor, timestep: Tensor, scheduler: Any) -> Tensor:
    """Return the x0 (B, C, H, W) that a prediction of the scheduler's `prediction_type` at x_t means."""
    return convert(prediction, sample, timestep, scheduler, scheduler.config.prediction_type, "sample")


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
              157 times at the noisiest timestep of DDPM's schedule: nothing; `clip` to the schedule's range; `dynamic`
              thresholding (Saharia et al. 2022). Without a change of type nothing is touched.
    Raises: BadInputError for an unknown type.
    """
    check_prediction_type(source)
    check_prediction_type(target)
    if source == target:
        return prediction
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    prediction, sample = prediction.to(dtype), sample.to(dtype)
    a, s = coefficients(scheduler, timestep, prediction)
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


def thresholded(x0: Tensor, scheduler: Any, threshold: Threshold) -> Tensor:
    """Return the x0 estimates (B, C, H, W) held to the range of data, as samplers do."""
    if threshold == "none":
        return x0
    limit = scheduler.config.clip_sample_range
    if threshold == "clip":
        return x0.clamp(-limit, limit)
    # Saharia et al. 2022: the given percentile of |x0|, at least the data's range, becomes the new end of that range.
    reach = torch.quantile(x0.flatten(1).abs(), scheduler.config.dynamic_thresholding_ratio, dim=1)
    reach = reach.clamp(min=limit).view(-1, *(1,) * (x0.dim() - 1))
    return x0.clamp(-reach, reach) * (limit / reach)
