"""The order in which training visits things, as a pure function of seed and position, so that resuming needs no state.

A position counts what was visited since the start of a training: position 0 is the first image of the first batch,
over all steps, processes and accumulated batches.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

# A batch in order needs the epoch of the one before, or two of them at a border. One of targets in a fresh order needs
# all epochs that they go over: 4 bytes a target, so all of 16 million are kept.
KEPT_BYTES = 64 * 2**20
KEPT_ALWAYS = 4  # permutations, however large


def visited(positions: Tensor, *, count: int, seed: int) -> Tensor:
    """Return which of `count` items is visited at each position (B,).

    Every epoch is a fresh permutation drawn from (seed, epoch), so that every item is seen equally often.
    """
    epochs = positions // count
    items = torch.empty_like(positions)
    for epoch in epochs.unique().tolist():
        inside = epochs == epoch
        items[inside] = _permutations(count, mixed(seed, epoch))[positions[inside] % count].long()
    return items


def evenly(total: int, count: int) -> Tensor:
    """Return `count` indices spread from the first to the last of `total`; all of them when there are fewer."""
    return torch.linspace(0, total - 1, min(count, total)).long()


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the CPU random generator of one training step, a function of (seed, step) alone."""
    return torch.Generator().manual_seed(step_seed(seed, step))


def step_seed(seed: int, step: int) -> int:
    """Return the seed of everything random in one training step."""
    return mixed(seed, step + 2**32)


def mixed(seed: int, counter: int) -> int:
    """Spread (seed, counter) over 63 bits, because torch's generator gives correlated streams for close seeds."""
    value = (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 1


class _Permutations:
    """Permutations by (count, seed), drawn when they are asked for; what was not asked for longest goes."""

    def __init__(self) -> None:
        self.drawn: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self.bytes = 0

    def __call__(self, count: int, seed: int) -> Tensor:
        """Return the permutation (count,)."""
        if (count, seed) not in self.drawn:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            self.drawn[count, seed] = order.int() if count < 2**31 else order
            self.bytes += self.drawn[count, seed].nbytes
        self.drawn.move_to_end((count, seed))
        while self.bytes > KEPT_BYTES and len(self.drawn) > KEPT_ALWAYS:
            _, oldest = self.drawn.popitem(last=False)
            self.bytes -= oldest.nbytes
        return self.drawn[count, seed]


_permutations = _Permutations()
