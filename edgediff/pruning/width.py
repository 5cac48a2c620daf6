"""Width pruning: the kept channels of a teacher, copied into a freshly built stock model of a narrower config.

The family says which channels are coupled, the student's config says how many stay, the importance says which. Nothing
is cut in place, so there is nothing to repair afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from edgediff.errors import BadInputError, StageFailedError
from edgediff.families import Config, Family, Group, Member, Widths
from edgediff.families.coupling import OUT
from edgediff.metrics.cost import parameter_bytes, parameter_count
from edgediff.pruning.importance import Scores

Slices = dict[str, dict[int, list[int]]]
"""Parameter or buffer → axis → kept indices, ascending, for every axis that is cut or dictated by the config."""

# A joint attention has projections of its own for the added stream.
QUERIES_AND_KEYS = (".to_q", ".to_k", ".add_q_proj", ".add_k_proj")


@dataclass(frozen=True)
class GroupCut:
    """What was kept of one group: indices in the teacher, ascending, of its `width` channels."""

    name: str
    width: int
    kept: list[int]


@dataclass(frozen=True)
class WidthReport:
    """What width pruning removed, measured on the two models.

    Attributes:
        widths_before, widths: channels of every level in teacher and student.
        pruning_ratio: share of channels removed, per level, in [0, 1).
        params_before, params: number of parameters.
        bytes_before, bytes: size of the parameters in the teacher's precision.
        groups: kept channels of every coupled group.
    """

    widths_before: Widths
    widths: Widths
    pruning_ratio: dict[str, float]
    params_before: int
    params: int
    bytes_before: int
    bytes: int
    groups: list[GroupCut]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, for the manifest."""
        return asdict(self)


def prune_width(model: ModelMixin, family: Family, widths: Widths, scores: Scores) -> tuple[ModelMixin, WidthReport]:
    """Return a stock model with these widths, made of the model's most important channels, and what was removed.

    The model is left untouched; the student has its dtype and device, and the kept values are exact copies.

    Args: widths: level → channels, for every level (`targets`).
          scores: parameter name → importance of every element (`importance`).

    Raises: BadInputError for widths no student can have or scores that do not fit the model; StageFailedError when a
    score is not finite.
    """
    student_config = family.student_config(model.config, widths)
    _check_scores(scores, model)
    slices, cuts = plan_width(family, model.config, student_config, scores)
    weights = {name: _take(value, slices.get(name, {})) for name, value in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):  # fresh weights, all replaced, must not cost the caller's random state
        student = family.build(student_config, model.device)
    # strict: a tensor that the plan forgot, or cut to another shape than the stock one, must not pass.
    student.load_state_dict(weights, strict=True, assign=True)
    student.train(model.training)
    before, after = family.levels(model.config), family.levels(student.config)
    report = WidthReport(
        widths_before=before,
        widths=after,
        pruning_ratio={level: 1 - after[level] / before[level] for level in before},
        params_before=parameter_count(model),
        params=parameter_count(student),
        bytes_before=parameter_bytes(model),
        bytes=parameter_bytes(student),
        groups=cuts,
    )
    return student, report


def plan_width(
    family: Family, teacher_config: Config, student_config: Config, scores: Scores
) -> tuple[Slices, list[GroupCut]]:
    """Choose what every group keeps, and turn it into the slices of every parameter.

    Returns: slices per parameter, and the same decision per group for the manifest.
    """
    teacher, student = family.build(teacher_config, "meta"), family.build(student_config, "meta")
    teacher_modules, student_modules = dict(teacher.named_modules()), dict(student.named_modules())
    removed: dict[tuple[str, int], set[int]] = {}
    slices: Slices = {}
    cuts = []
    for group in family.coupled_groups(teacher_config):
        votes = {member: member_importance(member, group.width, teacher_modules, scores) for member in group.members}
        attention = attention_of(group, teacher_modules)
        if attention is None:
            count = student_modules[group.name].weight.shape[OUT] // group.copies
            choose = top_of_runs if group.spread else top
            parts = [(group.name, list(group.members), choose(_sum(votes.values()), count))]
        else:
            parts = _attention_parts(group, votes, teacher_modules[attention], student_modules[attention])
        for name, members, kept in parts:
            cuts.append(GroupCut(name, group.width, kept))
            slices.update((buffer, {axis: kept}) for buffer, axis in group.buffers)
            stays = set(kept)
            for member in members:
                gone = removed.setdefault((member.module, member.axis), set())
                gone.update(channel for channel, index in member.channels if index not in stays)
    for (module, axis), gone in removed.items():
        for name, parameter_axis in _parameters(teacher_modules[module], module, axis):
            length = teacher.get_parameter(name).shape[parameter_axis]
            slices.setdefault(name, {})[parameter_axis] = [i for i in range(length) if i not in gone]
    for name, axes in family.fixed_slices(teacher_config, student_config).items():
        slices.setdefault(name, {}).update(axes)
    return slices, cuts


def top(importance: Tensor, count: int) -> list[int]:
    """Return the indices of the `count` largest values in ascending order; the first of equals wins.

    Ascending order keeps the teacher's order of channels, so neighbours in a GroupNorm group stay neighbours.
    """
    ranked = torch.argsort(importance, descending=True, stable=True)
    return sorted(ranked[:count].tolist())


def top_of_runs(importance: Tensor, count: int) -> list[int]:
    """Return the index of the largest value in each of `count` equal runs, ascending; the first of equals wins."""
    borders = [i * len(importance) // count for i in range(count + 1)]
    return [start + top(importance[start:end], 1)[0] for start, end in pairwise(borders)]


def member_importance(member: Member, width: int, modules: Mapping[str, nn.Module], scores: Scores) -> Tensor:
    """Return the importance (width,) of the group's channels in this one module, on average 1 (or all 0).

    A 3x3 convolution over many channels sums thousands of scores for a channel and a GroupNorm sums two; unless every
    module votes relative to its own average, the biggest layer decides alone.
    """
    per_channel = _sum(
        _along(scores[name], axis) for name, axis in _parameters(modules[member.module], member.module, member.axis)
    )
    own, shared = torch.tensor(member.channels).T
    total = torch.zeros(width, dtype=torch.float64).index_add(0, shared, per_channel[own])
    mean = total.mean()
    return total / mean if mean > 0 else total


def _along(scores: Tensor, axis: int) -> Tensor:
    """Return the sums over everything but an axis, float64."""
    return scores.cpu().movedim(axis, 0).reshape(scores.shape[axis], -1).sum(1, dtype=torch.float64)


def _parameters(module: nn.Module, name: str, axis: int) -> list[tuple[str, int]]:
    """Return the parameters that lie along the output or input channels of a module, each with its axis."""
    if isinstance(module, nn.Embedding):
        return [(f"{name}.weight", 1)]
    found = [(f"{name}.weight", axis)]
    if axis == OUT and module.bias is not None:
        found.append((f"{name}.bias", 0))
    return found


def attention_of(group: Group, modules: Mapping[str, nn.Module]) -> str | None:
    """Return the name of the attention module whose queries this group holds, if it holds any."""
    for member in group.members:
        parent, _, leaf = member.module.rpartition(".")
        if member.axis == OUT and leaf == "to_q" and isinstance(modules[parent], Attention):
            return parent
    return None


def _attention_parts(
    group: Group, votes: Mapping[Member, Tensor], before: Attention, after: Attention
) -> list[tuple[str, list[Member], list[int]]]:
    """Choose heads, then channels within each kept head: of queries with keys, and of values with the output.

    Heads go whole: mixing the channels of two heads in one would compare queries with keys they never saw. Within a
    head only queries and keys meet (in the scores), and only values and output do, so each pair chooses for itself.
    With unchanged head size both keep all channels of the same heads.
    """
    heads, head_dim = before.heads, group.width // before.heads
    kept_dim = after.to_q.weight.shape[OUT] // after.heads
    chosen = top(_sum(votes.values()).view(heads, head_dim).sum(1), after.heads)
    queries = [member for member in group.members if member.module.endswith(QUERIES_AND_KEYS)]
    values = [member for member in group.members if member not in queries]
    parts = []
    for members in (queries, values):
        vote = _sum(votes[member] for member in members).view(heads, head_dim)
        kept = [head * head_dim + channel for head in chosen for channel in top(vote[head], kept_dim)]
        parts.append((members[0].module, members, kept))
    return parts


def _check_scores(scores: Scores, model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        found = scores.get(name)  # once: it may be computed when it is asked for
        if found is None or found.shape != weight.shape:
            has = "none" if found is None else tuple(found.shape)
            raise BadInputError(
                f"importance of {name} does not have its shape: {has}, expected: {tuple(weight.shape)}",
                "measure the importance on this very model",
            )
        if not torch.isfinite(found).all():
            raise StageFailedError(
                f"importance of {name} is not finite", "check the teacher's weights and the calibration images"
            )


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def _take(value: Tensor, axes: Mapping[int, list[int]]) -> Tensor:
    taken = value.clone()
    for axis, kept in axes.items():
        taken = taken.index_select(axis, torch.tensor(kept, device=value.device))
    return taken
