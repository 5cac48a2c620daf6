"""What carries a student's feature maps to its teacher's widths: FitNets' regressor (Romero et al., ICLR 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgediff.errors import BadInputError


class Adapters(nn.Module):
    """One 1×1 convolution for every feature point, nothing where the widths agree; trained with the student.

    A convolution starts with orthonormal columns (rows where the student is the wider) and no bias: random, because
    which teacher channel a pruned one was is not known here, but it keeps the norm of features and of the gradient on
    their way back, as the identity does at points of equal width.
    """

    def __init__(self, student_widths: Sequence[int], teacher_widths: Sequence[int]) -> None:
        """Take the channels at every feature point, in the order of the maps.

        Raises: BadInputError when student and teacher have unequally many.
        """
        super().__init__()
        if len(student_widths) != len(teacher_widths):
            raise BadInputError(
                f"student and teacher have unequally many feature points: {len(student_widths)} and "
                f"{len(teacher_widths)}",
                "distil without feature losses, or prune widths only",
            )
        self.points = nn.ModuleList(
            nn.Identity() if ours == theirs else _adapter(ours, theirs)
            for ours, theirs in zip(student_widths, teacher_widths, strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the student's maps (B, C_i, H_i, W_i) with the teacher's channels."""
        return tuple(point(maps) for point, maps in zip(self.points, features, strict=True))


def _adapter(ours: int, theirs: int) -> nn.Conv2d:
    convolution = nn.Conv2d(ours, theirs, 1)
    nn.init.orthogonal_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution
