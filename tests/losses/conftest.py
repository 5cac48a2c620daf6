"""What the tests of every loss start from."""

import pytest
import torch


def correlated(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(shape, generator=generator, dtype=dtype)
    student = 0.8 * teacher + 0.1 + 0.3 * torch.randn(shape, generator=generator, dtype=dtype)
    return student, teacher


@pytest.fixture
def maps():
    """A function → a correlated pair of predictions, like a half-trained student and its teacher."""

    def make(shape=(3, 2, 6, 8), dtype=torch.float64, seed=0):
        return correlated(shape, dtype, seed)

    return make


@pytest.fixture
def features():
    """A function → feature maps of a student and its teacher at two points, of these widths."""

    def make(student_widths=(4, 6), teacher_widths=(4, 6), dtype=torch.float64):
        sides = ((6, 8), (3, 4))
        student = [
            correlated((3, w, *side), dtype, seed)[0]
            for seed, (w, side) in enumerate(zip(student_widths, sides, strict=True))
        ]
        teacher = [
            correlated((3, w, *side), dtype, seed)[1]
            for seed, (w, side) in enumerate(zip(teacher_widths, sides, strict=True))
        ]
        return student, teacher

    return make
