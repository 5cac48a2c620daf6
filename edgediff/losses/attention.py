"""Attention transfer: where the student's features are strong (Zagoruyko & Komodakis, ICLR 2017, arXiv 1612.03928)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import normalize

from edgediff.losses.feature import over_maps
from edgediff.losses.terms import Reduction, divisor, full_precision, squared_error


def attention(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, reduction: Reduction = "sum"
) -> Tensor:
    """Return the squared distance between normalised spatial attention maps: (B,), float32 at least.

    A map is the mean over channels of squared activations, divided by its Euclidean norm over positions. Channels are
    averaged away, so the widths of student and teacher may differ and no adapter is needed. The distance of two maps is
    at most 2 whatever their resolution; the authors weigh its mean over positions with 1,000, about as much as the
    whole distance at weight 1 at 32x32.

    Args: student_features, teacher_features: (B, C_i, H_i, W_i) each, in the same order, of equal spatial sizes. No
              gradient reaches the teacher's.
          reduction: the sum over maps of their distances, or ("sum") of the distance for every position of the map.
    Raises: BadInputError for no maps, another number of them, unequal spatial sizes, or an unknown reduction.
    """

    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        one, other = _attention_map(student), _attention_map(teacher)
        return squared_error(one, other, "sum") * (one.shape[1:].numel() / divisor(one, reduction))

    return over_maps(distance, student_features, teacher_features)


def _attention_map(features: Tensor) -> Tensor:
    """Return the map (B, H, W) of norm 1; 0 where all features are."""
    strength = full_precision(features).square().mean(1)
    return normalize(strength.flatten(1), eps=1e-12).view_as(strength)
