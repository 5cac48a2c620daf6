"""Tensors that FSDP has cut into one piece a process, and the whole ones that files and other groups hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor put together from its pieces, or itself; for a cut one, all processes have to call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # DTensor is slow to import


def cut_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor, the same in every process, cut as `other` is; itself where that one is whole."""
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    mesh = other.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, other.placements, src_data_rank=None)


@torch.no_grad()
def copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Copy the buffers between two modules of one structure; FSDP never cuts buffers."""
    for theirs, mine in zip(source.buffers(), target.buffers(), strict=True):
        mine.copy_(theirs)
