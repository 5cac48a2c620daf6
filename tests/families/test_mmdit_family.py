"""What the MMDiT family says: two streams that meet in the attention, a last block that stays last, flow matching."""

import pytest
import torch
from diffusers import SD3Transformer2DModel
from small_transformers import (
    SMALL_MMDIT,
    SMALL_MMDIT_35,
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

MMDIT = families.FAMILIES["SD3Transformer2DModel"]
MEDIUM = {
    **{"num_attention_heads": 24, "attention_head_dim": 64, "num_layers": 24, "sample_size": 128, "patch_size": 2},
    **{"in_channels": 16, "out_channels": 16, "pos_embed_max_size": 192},
    **{"joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048},
}


@pytest.fixture(scope="module")
def teacher():
    return teacher_of(SD3Transformer2DModel, SMALL_MMDIT)


@pytest.fixture(scope="module")
def dual_teacher():
    return teacher_of(SD3Transformer2DModel, SMALL_MMDIT_35)


def inputs_of(model, batch_size=2):
    return MMDIT.example_inputs(model.config, batch_size)


def kept_of(report):
    return {cut.name: cut.kept for cut in report.groups}


def test_width_is_that_of_all_heads_in_steps_of_whole_ones():
    config = on_meta(MMDIT, MEDIUM)
    assert MMDIT.levels(config) == {"transformer_blocks": 1536}
    assert MMDIT.granularity(config) == {"transformer_blocks": 64}


def test_a_text_stream_of_another_width_is_refused(teacher):
    with pytest.raises(BadInputError, match="caption_projection_dim is not the width of the blocks: 30, 32"):
        MMDIT.levels({**teacher.config, "caption_projection_dim": 30})


def test_student_configs_narrow_both_streams():
    config = on_meta(MMDIT, MEDIUM)
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    assert MMDIT.student_config(config, {"transformer_blocks": 1536}) == own
    student = MMDIT.student_config(config, {"transformer_blocks": 128})
    assert student == {**own, "num_attention_heads": 2, "caption_projection_dim": 128}
    with pytest.raises(BadInputError, match="width of transformer_blocks cannot be 100"):
        MMDIT.student_config(config, {"transformer_blocks": 100})


@pytest.mark.parametrize(("layers", "params"), [(24, 2028.33), (12, 1008.56)])
def test_parameters_are_those_of_sd3_medium_and_of_half_its_depth(layers, params):
    config = on_meta(MMDIT, MEDIUM)
    cut = MMDIT.without_blocks(config, MMDIT.blocks(config)[: 24 - layers])
    assert round(parameter_count(MMDIT.build(cut.config, "meta")) / 1e6, 2) == params


@pytest.mark.parametrize("layers", [2, pytest.param(24, marks=pytest.mark.slow)])
@pytest.mark.parametrize("changes", [{}, {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}], ids=["3", "3.5"])
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_every_planned_tensor_of_a_full_size_student_has_the_stock_shape(ratio, changes, layers):
    planned, stock = planned_shapes(MMDIT, {**MEDIUM, **changes, "num_layers": layers}, ratio)
    assert planned == stock


@pytest.mark.parametrize("config", [SMALL_MMDIT, SMALL_MMDIT_35, {**SMALL_MMDIT, "num_layers": 1}])
def test_the_student_equals_the_teacher_with_the_removed_channels_masked(config):
    assert distance_from_masked_teacher(SD3Transformer2DModel, config, 16) < 1e-12  # float64


def test_the_student_is_a_stock_model_that_loads_from_a_plain_folder(dual_teacher, tmp_path):
    untouched = {name: tensor.clone() for name, tensor in dual_teacher.state_dict().items()}
    student, report = prune(dual_teacher, 16)
    check_reached(MMDIT, dual_teacher.config, student.config, 0.5)
    assert report.params == parameter_count(student) < 0.35 * report.params_before
    student.save_pretrained(tmp_path)
    loaded, info = SD3Transformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(predicted(loaded, inputs_of(student)), predicted(student, inputs_of(student)))
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in dual_teacher.state_dict().items())


def test_all_heads_give_the_teacher_back(dual_teacher):
    student, _ = prune(dual_teacher, 32)
    assert torch.equal(predicted(student, inputs_of(dual_teacher)), predicted(dual_teacher, inputs_of(dual_teacher)))


def test_image_and_text_keep_channels_of_their_own(teacher):
    kept = kept_of(prune(teacher, 16)[1])
    assert len(kept["pos_embed.proj"]) == len(kept["context_embedder"]) == 16
    assert kept["pos_embed.proj"] != kept["context_embedder"]


def test_the_stored_position_embeddings_follow_the_image_stream(teacher):
    student, report = prune(teacher, 16)
    stream = kept_of(report)["pos_embed.proj"]
    assert torch.equal(student.pos_embed.pos_embed, teacher.pos_embed.pos_embed[:, :, stream])


def test_every_attention_chooses_its_heads_for_both_streams(dual_teacher):
    student, report = prune(dual_teacher, 16)
    kept = kept_of(report)
    chosen = []
    for attention in ("0.attn", "0.attn2", "1.attn", "2.attn", "2.attn2"):
        queries = kept[f"transformer_blocks.{attention}.to_q"]
        heads = sorted({channel // 8 for channel in queries})
        assert queries == [8 * head + channel for head in heads for channel in range(8)]
        assert queries == kept[f"transformer_blocks.{attention}.to_v"]
        chosen.append(heads)
    assert len({tuple(heads) for heads in chosen}) > 1
    text = kept["context_embedder"]
    for name in ("add_q_proj", "add_k_proj", "add_v_proj"):
        before, after = (getattr(model.transformer_blocks[1].attn, name).weight for model in (dual_teacher, student))
        assert torch.equal(after, before[kept["transformer_blocks.1.attn.to_q"]][:, text])


def test_a_head_that_is_loud_for_the_text_alone_survives(teacher):
    loud = teacher_of(SD3Transformer2DModel, SMALL_MMDIT)
    with torch.no_grad():
        for layer in (loud.transformer_blocks[0].attn.add_k_proj, loud.transformer_blocks[0].attn.add_v_proj):
            layer.weight[8:16] *= 10  # head 1
    _, report = prune(loud, 8, "magnitude")
    assert kept_of(report)["transformer_blocks.0.attn.to_q"] == [*range(8, 16)]


def test_example_inputs_repeat_and_are_in_the_graphs_order(teacher):
    inputs, again = inputs_of(teacher, 3), inputs_of(teacher, 3)
    assert tuple(inputs) == MMDIT.input_names(teacher.config)
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    assert [tuple(value.shape) for value in inputs.values()] == [(3, 3, 8, 8), (3,), (3, 333, 12), (3, 10)]
    assert all(value.dtype == torch.float32 for value in inputs.values())
    assert MMDIT.example_inputs(teacher.config, 1, 4)["sample"].shape == (1, 3, 4, 4)


def test_the_prediction_is_the_models_output(teacher):
    inputs = inputs_of(teacher)
    with torch.no_grad():
        expected = teacher(
            hidden_states=inputs["sample"],
            timestep=inputs["timestep"],
            encoder_hidden_states=inputs["encoder_hidden_states"],
            pooled_projections=inputs["pooled_projections"],
        ).sample
    assert torch.equal(predicted(teacher, inputs), expected)


def test_gradients_reach_every_parameter_of_a_student(dual_teacher):
    student, _ = prune(dual_teacher, 16)
    MMDIT.prediction(student.train(), **inputs_of(student)).square().sum().backward()
    silent = [name for name, parameter in student.named_parameters() if not parameter.grad.abs().sum() > 0]
    # The last block computes queries of the text, although their answers are thrown away.
    unused = ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")
    assert silent == [f"transformer_blocks.2.attn.{name}" for name in unused]


def test_features_are_maps_of_the_samples_tokens_wide_samples_too(teacher):
    inputs = {**inputs_of(teacher), "sample": torch.randn(2, 3, 4, 8)}
    points, blocks = MMDIT.feature_points(teacher.config, [teacher.config]), []
    handle = teacher.transformer_blocks[-1].register_forward_hook(lambda module, given, output: blocks.append(output))
    with torch.no_grad():
        prediction, features = MMDIT.prediction_and_features(teacher, points, **inputs)
    handle.remove()
    assert torch.equal(prediction, predicted(teacher, inputs))
    assert [tuple(map_.shape) for map_ in features] == [(2, 32, 2, 4)] * len(teacher.transformer_blocks)
    assert torch.equal(features[-1][:, :, 1, 2], blocks[0][1][:, 1 * 4 + 2])
    assert MMDIT.feature_widths(teacher.config, points) == (32,) * len(points)


def test_a_depth_cut_of_nothing_is_the_teacher(dual_teacher):
    assert not MMDIT.without_blocks(dual_teacher.config, ()).sources
    assert torch.equal(
        predicted(without(dual_teacher), inputs_of(dual_teacher)), predicted(dual_teacher, inputs_of(dual_teacher))
    )


@pytest.mark.parametrize(("index", "dual"), [(0, (1,)), (1, (0, 1))])
def test_a_removed_block_is_one_that_hands_its_input_on(index, dual):
    teacher = teacher_of(SD3Transformer2DModel, SMALL_MMDIT_35)
    student = without(teacher, f"transformer_blocks.{index}")
    assert student.config["num_layers"] == len(student.transformer_blocks) == 2
    assert student.config["dual_attention_layers"] == dual
    teacher.transformer_blocks[index] = Skipped(teacher.transformer_blocks[index])
    inputs = inputs_of(teacher)
    assert torch.equal(predicted(student, inputs), predicted(teacher, inputs))


def test_the_last_block_stays(teacher):
    assert MMDIT.blocks(teacher.config) == ("transformer_blocks.0", "transformer_blocks.1")
    with pytest.raises(BadInputError, match=r"cannot be removed: transformer_blocks\.2"):
        MMDIT.without_blocks(teacher.config, ["transformer_blocks.2"])
    assert without(teacher, *MMDIT.blocks(teacher.config)).config["num_layers"] == 1


def test_the_graph_of_a_student_agrees_at_every_batch_size(dual_teacher, tmp_path):
    student, _ = prune(dual_teacher, 16)
    assert distance_from_its_graph(student, tmp_path / "model.onnx") < 1e-5  # float32, values around 1
