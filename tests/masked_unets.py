"""The strongest test of a width cut of U-Nets: the student is its teacher with the removed channels masked."""

import torch
from torch import nn

from edgediff.pruning import importance_scores, prune_width, widths_for_ratio
from edgediff.pruning.width import plan_width


class ChannelAffine(nn.Module):
    """A norm that does not normalise, so that no channel's value depends on another's being there."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.axis = 1 if isinstance(norm, nn.GroupNorm) else -1

    def forward(self, x):
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return x * self.weight.view(shape) + self.bias.view(shape)


class ChosenTimes(nn.Module):
    """The teacher's sinusoidal embedding, reduced to the columns that the student took over."""

    def __init__(self, time_proj, columns):
        super().__init__()
        self.time_proj, self.columns = time_proj, columns

    def forward(self, timestep):
        return self.time_proj(timestep)[:, self.columns]


def without_norms(model):
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, ChannelAffine(module))
    return model.eval()


def distance_from_masked_teacher(family, teacher, ratio, inputs):
    """Return the relative L2 distance of a student's prediction from its teacher's with the removed channels masked.

    Only what is produced is masked (rows and biases), so a wrongly sliced consumer cannot agree by accident. Norms,
    whose statistics change with the channels, are taken out of both. The teacher is changed in place.
    """
    with torch.no_grad():
        for module in teacher.modules():  # without norms, signals must neither vanish nor explode
            if isinstance(module, nn.GroupNorm):
                module.weight.mul_(0.7)
            if hasattr(module, "to_q"):  # fresh attention is nearly uniform, so that heads would not matter
                module.to_q.weight.mul_(10)
                module.to_k.weight.mul_(10)
    student_config = family.student_config(teacher.config, widths_for_ratio(family, teacher.config, ratio))
    scores = importance_scores("random", teacher, family, seed=1)
    slices, _ = plan_width(family, teacher.config, student_config, scores)
    student, _ = prune_width(teacher, family, family.levels(student_config), scores)

    teacher.double()
    student.double()  # now: what is multiplied below would be rounded to float32
    columns = slices["time_embedding.linear_1.weight"][1]
    student.time_proj = ChosenTimes(teacher.time_proj, columns)
    produced = {"class_embedding.weight": 1}
    with torch.no_grad():
        for parameter_name, parameter in teacher.named_parameters():
            axis = produced.get(parameter_name, 0)
            kept = slices.get(parameter_name, {}).get(axis)
            if kept is not None:
                mask = torch.zeros(parameter.shape[axis])
                mask[kept] = 1
                parameter.mul_(mask.view([-1 if i == axis else 1 for i in range(parameter.ndim)]))
        first = teacher.time_embedding.linear_1.weight
        mask = torch.zeros(first.shape[1])
        mask[columns] = 1
        first.mul_(mask)
        for module_name, module in student.named_modules():
            if hasattr(module, "to_q"):  # 1/√head_dim belongs to the architecture: a smaller head has another scale
                before = teacher.get_submodule(module_name)
                head_dims = [m.to_q.out_features / m.heads for m in (module, before)]
                for parameter in module.to_q.parameters():
                    parameter.mul_((head_dims[0] / head_dims[1]) ** 0.5)
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        expected = family.prediction(without_norms(teacher), **inputs)
        actual = family.prediction(without_norms(student), **inputs)
    assert expected.std() > 1e-3
    return ((actual - expected).norm() / expected.norm()).item()
