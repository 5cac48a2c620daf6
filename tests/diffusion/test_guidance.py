"""Classifier-free guidance over any Denoiser."""

import torch

from edgediff.diffusion.guidance import Guided


class Shifting:
    """Adds every sample's label to it."""

    backend, device, precision = "pytorch", "cpu", "fp32"

    def __init__(self):
        self.batches = []

    def __call__(self, sample, timestep, **conditioning):
        self.batches.append(len(sample))
        return sample + conditioning["class_labels"].view(-1, 1, 1, 1)


def test_guidance_goes_beyond_the_conditional_prediction():
    inner = Shifting()
    guided = Guided(inner, 3.0, lambda count: {"class_labels": torch.full((count,), 10.0)})
    sample, labels = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 4.0])
    found = guided(sample, torch.tensor([5, 5]), class_labels=labels)
    # u + 3 (c - u) with u = 10, c = label
    assert found[:, 0, 0, 0].tolist() == [10 + 3 * (1 - 10), 10 + 3 * (4 - 10)]
    assert inner.batches == [4]


def test_scale_one_is_the_conditional_prediction():
    guided = Guided(Shifting(), 1.0, lambda count: {"class_labels": torch.zeros(count)})
    found = guided(torch.zeros(1, 1, 1, 1), torch.tensor([5]), class_labels=torch.tensor([7.0]))
    assert found.item() == 7.0
