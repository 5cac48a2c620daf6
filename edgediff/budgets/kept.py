"""How much of a teacher's importance a student keeps: what a search has to lose as little of as it can."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgediff.budgets.blocks import lies_in
from edgediff.budgets.space import Polynomials, Space, Student
from edgediff.families import Config
from edgediff.families.coupling import OUT
from edgediff.output import QUIET, Output
from edgediff.pruning import Scores
from edgediff.pruning.width import attention_of, member_importance, top_of_runs


class Kept:
    """Student → share of the teacher's importance that stays, in [0, 1]; 1 for the teacher itself.

    Every layer that has a side in a group of coupled channels says which share of its own importance the channels
    that stay hold; a layer of a block that went says 0. The mean over them all is kept. Layers count alike, as they
    do when they vote for channels (`pruning.width`): summed up, the scores of the largest layers would decide alone.
    """

    def __init__(self, space: Space, scores: Scores | None, output: Output = QUIET) -> None:
        """Take the importance of every parameter; None: all channels of a group matter the same."""
        model = space.family.build(space.config, "meta")
        modules = dict(model.named_modules())
        self.family = space.family
        self.groups = self.family.coupled_groups(space.config)
        self.members = [member.module for group in self.groups for member in group.members]
        self.votes: list[NDArray[np.float64]] = []  # of every group: (members, channels), each row adding up to 1
        self.orders: list[list[int] | None] = []  # channels, the one that stays longest first; None: chosen in runs
        for group in self.groups:
            if scores is None:
                votes = torch.ones(len(group.members), group.width, dtype=torch.float64)
            else:
                votes = torch.stack([member_importance(m, group.width, modules, scores) for m in group.members])
            attention = attention_of(group, modules)
            head = group.width // modules[attention].heads if attention else 1
            self.orders.append(None if group.spread else _order(votes.sum(0), head))
            self.votes.append((votes / votes.sum(1, keepdim=True).clamp_min(1e-300)).numpy())
        self.counts = Polynomials(space, self._channels, output)
        self.shares: dict[tuple[int, int], NDArray[np.float64]] = {}

    def __call__(self, student: Student) -> float:
        """Return the share that a student keeps."""
        counts = np.rint(self.counts(student.widths)).astype(int)
        shares = np.concatenate([self._share(index, count) for index, count in enumerate(counts)])
        return float(shares[self._staying(student.removed)].sum() / len(shares))

    def _channels(self, config: Config) -> NDArray[np.float64]:
        modules = dict(self.family.build(config, "meta").named_modules())
        return np.array([modules[group.name].weight.shape[OUT] / group.copies for group in self.groups])

    def _share(self, index: int, count: int) -> NDArray[np.float64]:
        """Return the share (members,) of the channels that stay when a group has `count`."""
        if (index, count) not in self.shares:
            votes, order = self.votes[index], self.orders[index]
            kept = top_of_runs(torch.from_numpy(votes.sum(0)), count) if order is None else order[:count]
            self.shares[index, count] = votes[:, kept].sum(1)
        return self.shares[index, count]

    def _staying(self, removed: Collection[str]) -> list[bool]:
        return [not any(lies_in(module, block) for block in removed) for module in self.members]


def _order(importance: Tensor, head: int) -> list[int]:
    """Return the channels by falling importance; those of an attention by heads, as heads stay or go whole."""
    within = importance.view(-1, head)
    heads = torch.argsort(within.sum(1), descending=True, stable=True)
    channels = torch.argsort(within, descending=True, stable=True)
    return (heads[:, None] * head + channels[heads]).flatten().tolist()
