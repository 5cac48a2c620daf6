"""What the DiT family says: one width in whole heads, depth in blocks, labels, and an output without its variance."""

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from small_transformers import (
    SMALL_DIT,
    Skipped,
    distance_from_its_graph,
    distance_from_masked_teacher,
    on_meta,
    planned_shapes,
    predicted,
    prune,
    teacher_of,
    without,
)

from edgediff import families
from edgediff.errors import BadInputError
from edgediff.metrics.cost import parameter_count
from edgediff.pruning import check_reached

DIT = families.FAMILIES["DiTTransformer2DModel"]
XL = {
    **{"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "sample_size": 32, "patch_size": 2},
    **{"in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 1000},
}


@pytest.fixture(scope="module")
def teacher():
    return teacher_of(DiTTransformer2DModel, SMALL_DIT)


def inputs_of(model, batch_size=2):
    return DIT.example_inputs(model.config, batch_size)


def test_width_is_that_of_all_heads_in_steps_of_whole_ones():
    config = on_meta(DIT, XL)
    assert DIT.levels(config) == {"transformer_blocks": 1152}
    assert DIT.granularity(config) == {"transformer_blocks": 72}
    # Sines and cosines of two coordinates need multiples of 4, so heads of 6 go in pairs.
    assert DIT.granularity({**config, "attention_head_dim": 6}) == {"transformer_blocks": 12}


def test_student_configs_change_the_number_of_heads_alone():
    config = on_meta(DIT, XL)
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    assert DIT.student_config(config, {"transformer_blocks": 1152}) == own
    assert DIT.student_config(config, {"transformer_blocks": 144}) == {**own, "num_attention_heads": 2}


@pytest.mark.parametrize("widths", [{"transformer_blocks": 100}, {"transformer_blocks": 0}, {"blocks": 72}, {}])
def test_widths_without_a_student_are_refused(widths):
    with pytest.raises(BadInputError) as error:
        DIT.student_config(on_meta(DIT, XL), widths)
    assert "transformer_blocks" in error.value.message + error.value.hint


@pytest.mark.parametrize(
    ("layers", "stock", "original"), [(28, 749.83, 675.1), (14, 376.27, 340.5), (7, 189.49, 173.1)]
)
def test_parameters_are_those_of_dit_xl_and_of_its_published_depth_cuts(layers, stock, original):
    config = on_meta(DIT, XL)
    removed = DIT.blocks(config)[layers:]
    cut = DIT.without_blocks(config, removed)
    assert round(parameter_count(DIT.build(cut.config, "meta")) / 1e6, 2) == stock
    assert round(DIT.original_params(cut.config) / 1e6, 1) == original


def test_the_original_layout_of_four_blocks_has_the_published_size():
    assert round(DIT.original_params({**XL, "num_layers": 4}) / 1e6, 1) == 101.4


@pytest.mark.parametrize("layers", [3, pytest.param(28, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_every_planned_tensor_of_a_full_size_student_has_the_stock_shape(ratio, layers):
    planned, stock = planned_shapes(DIT, {**XL, "num_layers": layers}, ratio)
    assert planned == stock


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation_fn": "geglu", "attention_bias": False},
        {"norm_elementwise_affine": True, "activation_fn": "gelu"},
        {"activation_fn": "swiglu", "out_channels": None},
    ],
)
def test_the_student_equals_the_teacher_with_the_removed_channels_masked(changes):
    assert distance_from_masked_teacher(DiTTransformer2DModel, {**SMALL_DIT, **changes}, 16) < 1e-12  # float64


def test_the_student_is_a_stock_model_that_loads_from_a_plain_folder(teacher, tmp_path):
    untouched = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student, report = prune(teacher, 16)
    check_reached(DIT, teacher.config, student.config, 0.5)
    assert report.params == parameter_count(student) < 0.35 * report.params_before
    student.save_pretrained(tmp_path)
    loaded, info = DiTTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(predicted(loaded, inputs_of(student)), predicted(student, inputs_of(student)))
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in teacher.state_dict().items())


def test_all_heads_give_the_teacher_back(teacher):
    student, _ = prune(teacher, 32)
    assert torch.equal(predicted(student, inputs_of(teacher)), predicted(teacher, inputs_of(teacher)))


def test_every_block_chooses_its_heads_and_keeps_them_whole(teacher):
    _, report = prune(teacher, 16)
    kept = {cut.name: cut.kept for cut in report.groups}
    chosen = []
    for block in DIT.blocks(teacher.config):
        queries, values = kept[f"{block}.attn1.to_q"], kept[f"{block}.attn1.to_v"]
        heads = sorted({channel // 8 for channel in queries})
        assert queries == values == [8 * head + channel for head in heads for channel in range(8)]
        chosen.append(heads)
    assert chosen[0] != chosen[1]


def test_the_stream_keeps_one_channel_of_every_run_so_that_position_frequencies_stay_near(teacher):
    _, report = prune(teacher, 16)
    kept = next(cut.kept for cut in report.groups if cut.name == "pos_embed.proj")
    assert [channel // 2 for channel in kept] == list(range(16))
    assert len({channel % 2 for channel in kept}) == 2  # importance still decides within a run
    own, theirs = (get_2d_sincos_pos_embed(width, 4, base_size=4) for width in (16, 32))
    # A run of two spans 10000^(1/8) in frequency, about 3; sines of slow waves are near 0, cosines near 1.
    nearest = (own - theirs[:, kept]).norm()
    assert nearest < 0.6 * (own - theirs[:, [*range(16)]]).norm()


def test_embedders_that_are_copies_in_the_teacher_stay_copies(teacher):
    twin = teacher_of(DiTTransformer2DModel, SMALL_DIT)
    first, second = twin.transformer_blocks
    second.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    student, _ = prune(twin, 16)
    one, other = (block.norm1.emb.state_dict() for block in student.transformer_blocks)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_learned_variance_is_left_out_of_the_prediction(teacher):
    inputs = inputs_of(teacher)
    with torch.no_grad():
        output = teacher(inputs["sample"], inputs["timestep"], inputs["class_labels"]).sample
    assert output.shape == (2, 6, 8, 8)
    assert torch.equal(predicted(teacher, inputs), output[:, :3])


def test_example_inputs_repeat_and_are_in_the_graphs_order(teacher):
    inputs, again = inputs_of(teacher, 7), inputs_of(teacher, 7)
    assert tuple(inputs) == DIT.input_names(teacher.config) == ("sample", "timestep", "class_labels")
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    assert inputs["class_labels"].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert inputs["timestep"].dtype == torch.int64
    assert DIT.example_inputs(teacher.config, 1, 16)["sample"].shape == (1, 3, 16, 16)
    assert DIT.component == "transformer"


def test_no_class_is_the_last_embedding(teacher):
    labels = DIT.unconditional(teacher.config, 3)
    assert labels["class_labels"].tolist() == [5, 5, 5]
    predicted(teacher, {**inputs_of(teacher, 3), **labels})  # an index out of range would raise


def test_labels_are_not_dropped_in_training(teacher):
    student, _ = prune(teacher, 16)
    inputs = inputs_of(student, 64)
    expected = predicted(student, inputs)
    torch.testing.assert_close(DIT.prediction(student.train(), **inputs).detach(), expected, rtol=0, atol=1e-6)


def test_gradients_reach_every_parameter_of_a_student(teacher):
    student, _ = prune(teacher, 16)
    DIT.prediction(student.train(), **inputs_of(student)).square().sum().backward()
    assert [name for name, parameter in student.named_parameters() if not parameter.grad.abs().sum() > 0] == []


def test_features_are_maps_of_the_blocks_tokens(teacher):
    inputs = inputs_of(teacher)
    points, blocks = DIT.feature_points(teacher.config, [teacher.config]), []
    handle = teacher.transformer_blocks[-1].register_forward_hook(lambda module, given, output: blocks.append(output))
    with torch.no_grad():
        prediction, features = DIT.prediction_and_features(teacher, points, **inputs)
    handle.remove()
    assert torch.equal(prediction, predicted(teacher, inputs))
    assert [tuple(map_.shape) for map_ in features] == [(2, 32, 4, 4)] * len(teacher.transformer_blocks)
    assert torch.equal(features[-1][:, :, 1, 2], blocks[0][:, 1 * 4 + 2])
    assert DIT.feature_widths(teacher.config, points) == (32,) * len(points)


@pytest.mark.parametrize(
    ("depths", "expected"),
    [
        ((7, 28), ([1, 3, 5, 6], [6, 13, 20, 27])),
        ((3, 7), ([0, 1, 2], [2, 4, 6])),  # a student's block has one teacher's block, and not two
        ((1, 28), ([0], [27])),
    ],
)
def test_feature_points_divide_any_depth_evenly(depths, expected):
    compared = [{**SMALL_DIT, "num_layers": layers} for layers in depths]
    for config, blocks in zip(compared, expected, strict=True):
        assert DIT.feature_points(config, compared) == tuple(f"transformer_blocks.{block}" for block in blocks)


def test_a_depth_cut_of_nothing_is_the_teacher(teacher):
    cut = DIT.without_blocks(teacher.config, ())
    assert not cut.sources
    assert torch.equal(predicted(without(teacher), inputs_of(teacher)), predicted(teacher, inputs_of(teacher)))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_removed_block_is_one_that_hands_its_input_on(index):
    teacher = teacher_of(DiTTransformer2DModel, {**SMALL_DIT, "num_layers": 3})
    first = teacher.transformer_blocks[0].norm1.emb
    for block in teacher.transformer_blocks:  # the output layer reads the first block's embedders, whichever it is
        block.norm1.emb.load_state_dict(first.state_dict())
    student = without(teacher, f"transformer_blocks.{index}")
    assert student.config["num_layers"] == len(student.transformer_blocks) == 2
    teacher.transformer_blocks[index] = Skipped(teacher.transformer_blocks[index])
    inputs = inputs_of(teacher)
    assert torch.equal(predicted(student, inputs), predicted(teacher, inputs))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (("transformer_blocks.2",), "transformer_blocks.2"),
        (("pos_embed",), "pos_embed"),
        (("transformer_blocks.0", "transformer_blocks.1"), "no block"),
    ],
)
def test_impossible_depth_cuts_are_refused(removed, message, teacher):
    with pytest.raises(BadInputError, match=message):
        DIT.without_blocks(teacher.config, removed)


def test_the_graph_of_a_student_agrees_at_every_batch_size(teacher, tmp_path):
    student, _ = prune(teacher, 16)
    assert distance_from_its_graph(student, tmp_path / "model.onnx") < 1e-5  # float32, values around 1
