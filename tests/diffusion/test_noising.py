"""What models are trained to predict."""

import torch
from diffusers import DDPMScheduler

from edgediff.diffusion.noising import prediction_target

SHAPE = (1, 28, 28)


def test_targets_of_every_prediction_type():
    x0, noise = torch.full((2, *SHAPE), 0.5), torch.full((2, *SHAPE), -2.0)
    timestep = torch.tensor([10, 900])
    alpha = DDPMScheduler().alphas_cumprod[timestep].view(-1, 1, 1, 1)
    expected = {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * x0,
    }
    for kind, target in expected.items():
        measured = prediction_target(DDPMScheduler(prediction_type=kind), x0, noise, timestep)
        torch.testing.assert_close(measured, target)
