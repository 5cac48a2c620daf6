"""Which tensors of a batch are named as not finite."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edgediff.training.finite import not_finite


@dataclass(frozen=True)
class Answer:
    prediction: Tensor
    features: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Batch:
    step: int
    sample: Tensor
    told: dict[str, Tensor]
    name: str = "batch"
    answer: Answer | None = None


def test_what_is_not_finite_is_named_wherever_it_is():
    good, nan, inf = torch.ones(3), torch.tensor([1.0, torch.nan]), torch.tensor([-torch.inf])
    assert not_finite(Batch(0, good, {"labels": torch.tensor([1])}, answer=Answer(good, (good, good)))) == []
    assert not_finite(Batch(0, good, {"labels": torch.tensor([1])})) == []
    found = not_finite(Batch(0, nan, {"text": inf, "mask": torch.tensor([True])}, answer=Answer(good, (good, nan))))
    assert found == ["sample", "told.text", "answer.features.1"]
    assert not_finite(nan) == ["batch"]
    assert not_finite((good, nan.half())) == ["1"]
