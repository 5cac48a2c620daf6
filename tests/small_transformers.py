"""What the tests of both transformer families share: small teachers, and the comparisons that every student stands."""

import numpy as np
import onnxruntime
import torch
from torch import nn

from edgediff import families
from edgediff.pruning import importance_scores, prune_width, widths_for_ratio
from edgediff.pruning.depth import prune_depth
from edgediff.pruning.width import plan_width

SMALL_DIT = {
    **{"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2},
    **{"in_channels": 3, "out_channels": 6, "num_embeds_ada_norm": 5},
}
SMALL_MMDIT = {
    **{"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 3, "sample_size": 8, "patch_size": 2},
    **{"in_channels": 3, "out_channels": 3, "pos_embed_max_size": 6},
    **{"joint_attention_dim": 12, "caption_projection_dim": 32, "pooled_projection_dim": 10},
}
SMALL_MMDIT_35 = {**SMALL_MMDIT, "dual_attention_layers": (0, 2), "qk_norm": "rms_norm"}

PRODUCED = {"embedding_table.weight": 1, "pos_embed.pos_embed": 2}  # the axis of what a tensor puts out, where not 0


def teacher_of(model_class, config, seed=0):
    """Return a model whose heads attend to some tokens more than to others, and whose every tensor matters."""
    torch.manual_seed(seed)
    model = model_class(**config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # fresh biases and norms are zeros and ones, which would hide a wrong slice
                parameter.add_(0.3 * torch.randn_like(parameter))
            if "_q" in name or "_k" in name:
                parameter.mul_(4)
    return model


def on_meta(family, config):
    return dict(family.build(config, "meta").config)


def prune(teacher, width, importance="random", seed=1):
    family = families.of(teacher)
    scores = importance_scores(importance, teacher, family, seed=seed)
    return prune_width(teacher, family, {"transformer_blocks": width}, scores)


def without(teacher, *removed):
    family = families.of(teacher)
    return prune_depth(teacher, family, family.without_blocks(teacher.config, removed))[0]


def planned_shapes(family, config, ratio):
    """Return the shapes of a student's tensors, as planned on the meta device, and as the stock class has them."""
    teacher = family.build(config, "meta")
    student = family.student_config(teacher.config, widths_for_ratio(family, teacher.config, ratio))
    scores = {name: torch.ones(()).expand(parameter.shape) for name, parameter in teacher.named_parameters()}
    slices, _ = plan_width(family, teacher.config, student, scores)
    planned = {
        name: tuple(len(slices.get(name, {}).get(axis, range(size))) for axis, size in enumerate(tensor.shape))
        for name, tensor in teacher.state_dict().items()
    }
    return planned, {name: tuple(tensor.shape) for name, tensor in family.build(student, "meta").state_dict().items()}


def predicted(model, inputs):
    with torch.no_grad():
        return families.of(model).prediction(model, **inputs)


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def distance_from_masked_teacher(model_class, config, width):
    """Return the relative L2 distance between a student and its teacher with the removed channels masked.

    Only what is produced is masked (rows, biases, embeddings), so a wrongly sliced consumer cannot agree by accident.
    Layer norms, whose statistics change with the channels, are taken out of both; the norms inside a head stay.
    """
    teacher = teacher_of(model_class, config)
    family = families.of(teacher)
    scores = importance_scores("random", teacher, family, seed=1)
    student, _ = prune_width(teacher, family, {"transformer_blocks": width}, scores)
    slices, _ = plan_width(family, teacher.config, student.config, scores)
    stream = slices["pos_embed.proj.weight"][0]
    # A student may compute other position embeddings than its teacher; the slices are to be compared.
    student.pos_embed.pos_embed = teacher.pos_embed.pos_embed[:, :, stream].clone()
    slices["pos_embed.pos_embed"] = {2: stream}
    with torch.no_grad():
        for name, tensor in (*teacher.named_parameters(), *teacher.named_buffers()):
            axis = next((axis for end, axis in PRODUCED.items() if name.endswith(end)), 0)
            kept = slices.get(name, {}).get(axis)
            if kept is not None:
                mask = torch.zeros(tensor.shape[axis])
                mask[kept] = 1
                tensor.mul_(mask.view([-1 if i == axis else 1 for i in range(tensor.ndim)]))
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in family.example_inputs(config, 2).items()}
    expected = predicted(_without_norms(teacher), inputs)
    assert expected.std() > 1e-3
    return relative(predicted(_without_norms(student), inputs), expected)


def _without_norms(model):
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.LayerNorm):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _Affine(module))
    return model.double().eval()


class _Affine(nn.Module):
    """A layer norm that does not normalise."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x):
        return x if self.weight is None else x * self.weight + self.bias


class Skipped(nn.Module):
    """A block that hands on what it was given: the sample's stream, or the text's and the sample's."""

    def __init__(self, block):
        super().__init__()
        self.norm1 = block.norm1  # DiT's output layer reads the embedders in it

    def forward(self, hidden_states, encoder_hidden_states=None, **unused):
        return hidden_states if encoder_hidden_states is None else (encoder_hidden_states, hidden_states)


class _Prediction(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.family = model, families.of(model)
        self.names = self.family.input_names(model.config)

    def forward(self, *inputs):
        return self.family.prediction(self.model, **dict(zip(self.names, inputs, strict=True)))


def distance_from_its_graph(model, path):
    """Export a model with a dynamic batch and return the largest distance of the graph's predictions from its own."""
    predict = _Prediction(model).eval()
    inputs = predict.family.example_inputs(model.config, 2)
    torch.onnx.export(
        predict,
        tuple(inputs[name] for name in predict.names),
        str(path),
        input_names=list(predict.names),
        output_names=list(predict.family.output_names),
        dynamic_shapes=(tuple({0: torch.export.Dim.AUTO} for _ in predict.names),),
        dynamo=True,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    distances = []
    for batch_size in (1, 3):
        inputs = predict.family.example_inputs(model.config, batch_size)
        (prediction,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        distances.append(np.abs(prediction - predicted(model, inputs).numpy()).max())
    return max(distances)
