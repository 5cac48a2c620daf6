"""What the text-conditional U-Net family says: SD 1, SD 2, SDXL and their cuts alike, in width and in depth."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from masked_unets import distance_from_masked_teacher
from small_transformers import distance_from_its_graph, on_meta, planned_shapes, predicted

from edgediff import families, registry
from edgediff.errors import BadInputError
from edgediff.families import unet_depth
from edgediff.families.unet_depth_rules import RULES
from edgediff.metrics.cost import parameter_count
from edgediff.pruning import importance_scores, prune_width, widths_for_ratio
from edgediff.pruning.depth import prune_depth
from edgediff.pruning.width import plan_width

UNET = families.FAMILIES["UNet2DConditionModel"]
SMALL = {
    **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 8},
    **{"cross_attention_dim": 16, "block_out_channels": (32, 64)},
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SMALL_XL = {
    **{**SMALL, "attention_head_dim": (2, 4), "use_linear_projection": True},
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    **{"transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time"},
    **{"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 12},
}
STYLES = {
    "sd1": {**SMALL, "attention_head_dim": 4},  # the number of heads, at every level; convolutions around attention
    "sd2": {**SMALL, "attention_head_dim": (2, 4), "use_linear_projection": True},
    "sdxl": SMALL_XL,
    "ssd": {
        **{**SMALL_XL, "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, [2, 1]]},
        "reverse_transformer_layers_per_block": [[1, 2, 3], 1],
    },
    "koala": {**SMALL_XL, "layers_per_block": 1, "mid_block_type": None},
}


def teacher_of(style):
    torch.manual_seed(0)
    model = UNet2DConditionModel(**STYLES[style]).eval()
    with torch.no_grad():  # fresh norms and biases are ones and zeros, which would hide a wrong slice
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def half_of(teacher):
    widths = widths_for_ratio(UNET, teacher.config, 0.5)
    return prune_width(teacher, UNET, widths, importance_scores("magnitude", teacher, UNET))


def inputs_of(model):
    return UNET.example_inputs(model.config, 2)


def registered(name):
    return on_meta(UNET, registry.entry(name).config)


def student_of(config, *widths):
    return UNET.student_config(config, dict(zip(UNET.levels(config), widths, strict=True)))


# Width


@pytest.mark.parametrize("ratio", [0.25, 0.75])
@pytest.mark.parametrize("style", STYLES)
def test_the_student_equals_the_teacher_with_the_removed_channels_masked(style, ratio):
    teacher = teacher_of(style)
    assert distance_from_masked_teacher(UNET, teacher, ratio, inputs_of(teacher)) < 1e-12  # float64


@pytest.mark.parametrize("style", STYLES)
def test_the_student_is_a_stock_model_that_loads_from_a_plain_folder(style, tmp_path):
    student, report = half_of(teacher_of(style))
    assert report.params == parameter_count(student) < 0.45 * report.params_before
    student.save_pretrained(tmp_path)
    loaded, info = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(predicted(loaded, inputs_of(student)), predicted(student, inputs_of(student)))


@pytest.mark.parametrize("style", STYLES)
def test_gradients_of_features_and_prediction_reach_every_parameter_of_a_student(style):
    teacher = teacher_of(style)
    student, _ = half_of(teacher)
    points, inputs = UNET.feature_points(student.config, [teacher.config]), inputs_of(student)
    prediction, features = UNET.prediction_and_features(student.train(), points, **inputs)
    _, targets = UNET.prediction_and_features(teacher, points, **inputs)
    assert [map_.shape[2:] for map_ in features] == [map_.shape[2:] for map_ in targets]
    (prediction.square().sum() + sum(map_.square().sum() for map_ in features)).backward()
    assert [name for name, parameter in student.named_parameters() if not parameter.grad.abs().sum() > 0] == []


def test_values_and_gates_of_a_feed_forward_layer_go_together():
    teacher = teacher_of("sd2")
    config = student_of(teacher.config, 16, 32)
    slices, _ = plan_width(UNET, teacher.config, config, importance_scores("random", teacher, UNET))
    layers = [name for name in slices if name.endswith("ff.net.0.proj.weight")]
    assert len(layers) == 2 + 3 + 1  # down, up and middle
    for name in layers:
        kept = slices[name][0]
        values, gates = kept[: len(kept) // 2], kept[len(kept) // 2 :]
        inner = teacher.get_parameter(name).shape[0] // 2
        assert len(values) == inner // 2 and gates == [inner + i for i in values]
        assert slices[name.replace("0.proj", "2")][1] == values


@pytest.mark.parametrize(
    ("name", "widths", "heads"),
    [
        ("sd2.1-base", (160, 320, 640, 640), (4, 5, 10, 10)),  # 4 heads of 40, then whole ones of 64
        ("sd2.1-base", (96, 192, 320, 320), (2, 3, 5, 5)),
        ("sd2.1-base", (32, 64, 128, 128), (1, 1, 2, 2)),
        ("sd1.5", (160, 320, 640, 640), (4, 4, 4, 4)),  # whole ones of 40, 80 and 160
        ("sd1.5", (288, 576, 1152, 1152), 8),
        ("sd1.5", (64, 128, 256, 256), (2, 2, 2, 2)),
        ("sdxl", (160, 320, 640), (5, 5, 10)),  # no attention at the first level, whose number says nothing
        ("bk-sdm-v2-tiny", (32, 64, 128), (1, 1, 2)),
    ],
)
def test_a_level_takes_the_fewest_heads_no_larger_than_the_teachers(name, widths, heads):
    assert student_of(registered(name), *widths)["attention_head_dim"] == heads


def test_a_width_that_no_heads_fill_is_refused():
    with pytest.raises(BadInputError, match=r"down_blocks.0 cannot be 288: up to 5 heads of up to 64 channels"):
        student_of(registered("sd2.1-base"), 288, 576, 1152, 1152)


@pytest.mark.parametrize("style", STYLES)
def test_the_teachers_widths_give_the_teachers_config(style):
    config = on_meta(UNET, STYLES[style])
    assert student_of(config, 32, 64) == {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("sd2.1-base", {0.5: 222_984_164, 0.9: 11_001_444}),
        ("sd1.5", {0.5: 219_789_284, 0.9: 10_362_468}),
        ("sdxl", {0.5: 728_365_444, 0.9: 56_814_468}),
    ],
)
def test_half_and_nine_tenths_of_the_channels_of_stable_diffusion_can_go(name, params):
    config = registered(name)
    for ratio, count in params.items():
        widths = widths_for_ratio(UNET, config, ratio)
        assert [round(width / (1 - ratio)) for width in widths.values()] == list(config["block_out_channels"])
        assert parameter_count(UNET.build(UNET.student_config(config, widths), "meta")) == count


@pytest.mark.parametrize(
    "name", ["sd2.1-base", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd1.5", "sdxl", "ssd-1b"))]
)
def test_students_of_full_size_are_planned_in_stock_shapes(name):
    planned, stock = planned_shapes(UNET, registered(name), 0.9)
    assert planned == stock


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"num_class_embeds": 1000}, "num_class_embeds"),
        ({"addition_embed_type": "image"}, "addition_embed_type"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ({"cross_attention_dim": (16, 32)}, "cross_attention_dim"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "UNetMidBlock2DSimpleCrossAttn"),
        ({"attention_head_dim": 3}, "3 heads, 32 channels"),
    ],
)
def test_what_width_pruning_does_not_support_is_named(changes, said):
    with pytest.raises(BadInputError, match=said):
        UNET.granularity({**on_meta(UNET, STYLES["sd2"]), **changes})


# Inputs


def test_the_conditioning_is_named_in_the_graphs_order():
    assert UNET.conditioning_names(registered("sd2.1")) == ("encoder_hidden_states",)
    xl = registered("sdxl")
    inputs = UNET.example_inputs(xl, device="meta")
    assert tuple(inputs) == UNET.input_names(xl)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        **{"sample": (1, 4, 128, 128), "timestep": (1,), "encoder_hidden_states": (1, 77, 2048)},
        **{"text_embeds": (1, 1280), "time_ids": (1, 6)},
    }
    assert UNET.sample_shape(registered("sd2.1-base")) == (4, 64, 64)


@pytest.mark.parametrize("changed", ["encoder_hidden_states", "text_embeds", "time_ids"])
def test_the_prediction_depends_on_all_conditioning(changed):
    teacher = teacher_of("sdxl")
    inputs = inputs_of(teacher)
    other = {**inputs, changed: inputs[changed] + 1}
    assert not torch.allclose(predicted(teacher, inputs), predicted(teacher, other))


def test_the_graph_of_a_student_agrees_at_every_batch_size(tmp_path):
    torch.manual_seed(0)
    teacher = UNet2DConditionModel(**{**STYLES["koala"], "transformer_layers_per_block": 1}).eval()  # exports fastest
    student, _ = half_of(teacher)
    assert distance_from_its_graph(student, tmp_path / "model.onnx") < 1e-4  # float32, values around 1


# Depth


@pytest.mark.parametrize("style", STYLES)
def test_every_removable_part_can_go_on_its_own_and_all_can_together(style):
    teacher = teacher_of(style)
    blocks = UNET.blocks(teacher.config)
    for removed in (*((block,) for block in blocks), blocks):
        student, report = prune_depth(teacher, UNET, UNET.without_blocks(teacher.config, removed))
        inside = [block for block in report.removed if any(block.startswith(f"{part}.") for part in _modules(removed))]
        assert {*removed, *inside} == set(report.removed)
        assert report.params < report.params_before
        assert torch.isfinite(predicted(student, inputs_of(student))).all()


def _modules(blocks):
    return [module for block in blocks for module in block.split("+")]


def test_what_can_go_is_listed_in_the_order_in_which_it_runs():
    assert UNET.blocks(on_meta(UNET, STYLES["sd1"])) == (
        "down_blocks.0.resnets.1+down_blocks.0.attentions.1+up_blocks.1.resnets.1+up_blocks.1.attentions.1",
        "down_blocks.1.resnets.1+up_blocks.0.resnets.1",
        "mid_block",
    )
    assert UNET.blocks(on_meta(UNET, STYLES["koala"])) == (
        "down_blocks.1.attentions.0.transformer_blocks.1",
        "up_blocks.0.attentions.0.transformer_blocks.1",
        "up_blocks.0.attentions.1.transformer_blocks.1",
    )
    # One number of the stock config gives the lowest level's first attention and the middle block their blocks.
    xl = "down_blocks.1.attentions.0.transformer_blocks.1+mid_block.attentions.0.transformer_blocks.1"
    assert xl in UNET.blocks(on_meta(UNET, STYLES["sdxl"]))
    assert len(UNET.blocks(registered("sdxl"))) == 54


@pytest.mark.parametrize("style", STYLES)
def test_nothing_removed_is_the_teacher(style):
    teacher = teacher_of(style)
    cut = UNET.without_blocks(teacher.config, ())
    assert cut.sources == {}
    student, _ = prune_depth(teacher, UNET, cut)
    assert torch.equal(predicted(student, inputs_of(teacher)), predicted(teacher, inputs_of(teacher)))


def test_a_student_without_a_layer_is_the_teacher_whose_layer_passes_its_input_on():
    """A transformer block is a residual one: with its last projections at zero it changes nothing."""
    teacher = teacher_of("ssd")
    removed = "up_blocks.0.attentions.2.transformer_blocks.1"
    student, _ = prune_depth(teacher, UNET, UNET.without_blocks(teacher.config, [removed]))
    assert student.config["reverse_transformer_layers_per_block"] == ((1, 2, 2), 1)
    block = teacher.get_submodule(removed)
    with torch.no_grad():
        for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
            layer.weight.zero_()
            layer.bias.zero_()
    assert torch.equal(predicted(student, inputs_of(teacher)), predicted(teacher, inputs_of(teacher)))


def test_unknown_blocks_are_refused_with_those_that_can_go():
    with pytest.raises(BadInputError, match=r"cannot be removed: down_blocks.0.resnets.0") as error:
        UNET.without_blocks(on_meta(UNET, STYLES["sd1"]), ["mid_block", "down_blocks.0.resnets.0"])
    assert "mid_block" in error.value.hint


# Published cuts


@pytest.mark.parametrize(
    ("rule", "teacher", "published", "params"),
    [
        ("bk_base", "sd2.1-base", "bk-sdm-v2-base", 583_480_964),
        ("bk_small", "sd2.1-base", "bk-sdm-v2-small", 485_787_524),
        ("bk_tiny", "sd2.1-base", "bk-sdm-v2-tiny", 326_825_604),
        ("bk_base", "sd1.5", "bk-sdm-base", 579_384_964),
        ("bk_small", "sd1.5", "bk-sdm-small", 482_346_884),
        ("bk_tiny", "sd1.5", "bk-sdm-tiny", 323_384_964),
        ("ssd_1b", "sdxl", "ssd-1b", 1_331_334_404),
        ("koala_1b", "sdxl", "koala-1b", 1_161_184_324),
        ("koala_700m", "sdxl", "koala-700m", 782_822_724),
    ],
)
def test_the_published_cuts_are_made_of_the_teachers_tensors_alone(rule, teacher, published, params):
    config = registered(teacher)
    # Strict: a tensor without a source in the teacher, or of another shape than it, would raise.
    student, report = prune_depth(UNET.build(config, "meta"), UNET, UNET.depth_rules(config)[rule](config))
    assert report.params == params
    theirs = UNET.build(registry.entry(published).config, "meta").state_dict()
    assert {name: tensor.shape for name, tensor in student.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }


def test_bk_sdm_takes_the_weights_that_its_authors_took():
    """As in the paper's code; what is not named keeps its name."""
    config = registered("sd2.1-base")
    last_of_three = {f"up_blocks.{i}.resnets.1": f"up_blocks.{i}.resnets.2" for i in range(4)}
    last_of_three |= {f"up_blocks.{i}.attentions.1": f"up_blocks.{i}.attentions.2" for i in (1, 2, 3)}
    assert RULES["bk_base"](config).sources == RULES["bk_small"](config).sources == last_of_three
    tiny = {f"up_blocks.{i}": f"up_blocks.{i + 1}" for i in range(3)}
    for part in ("resnets", "attentions"):
        tiny |= {f"up_blocks.{i}.{part}.1": f"up_blocks.{i + 1}.{part}.2" for i in range(3)}
    assert RULES["bk_tiny"](config).sources == tiny


def test_bk_sdm_tiny_is_compared_where_its_authors_compare_it():
    """As in the paper's code: all blocks of the levels that both have, and the last layer of the lowest of these."""
    teacher = registered("sd2.1-base")
    student = RULES["bk_tiny"](teacher).config
    mine, theirs = (UNET.feature_points(config, [student, teacher]) for config in (student, teacher))
    assert mine == (
        *("down_blocks.0", "down_blocks.1", "down_blocks.2.attentions.0"),
        *("up_blocks.0", "up_blocks.1", "up_blocks.2"),
    )
    assert theirs == (
        *("down_blocks.0", "down_blocks.1", "down_blocks.2.attentions.1"),
        *("up_blocks.1", "up_blocks.2", "up_blocks.3"),
    )
    widths = (320, 640, 1280, 1280, 640, 320)
    assert UNET.feature_widths(student, mine) == UNET.feature_widths(teacher, theirs) == widths


def test_a_student_without_the_lowest_level_has_its_teachers_features_on_the_way_down():
    torch.manual_seed(0)
    levels = {"block_out_channels": (32, 64, 64), "attention_head_dim": 4}
    types = {
        "down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
    }
    teacher = UNet2DConditionModel(**{**SMALL, **levels, **types}).eval()
    depth = unet_depth.whole(teacher.config)
    blocks = {name: layers for name, layers in depth.blocks.items() if name not in ("down_blocks.2", "up_blocks.0")}
    student, _ = prune_depth(teacher, UNET, unet_depth.cut(teacher.config, unet_depth.Depth(blocks, None)))
    compared, inputs = [student.config, teacher.config], inputs_of(teacher)
    with torch.no_grad():
        (_, ours), (_, theirs) = (
            UNET.prediction_and_features(model, UNET.feature_points(model.config, compared), **inputs)
            for model in (student, teacher)
        )
    assert [map_.shape for map_ in ours] == [map_.shape for map_ in theirs]
    assert [torch.equal(*pair) for pair in zip(ours, theirs, strict=True)] == [True, True, False, False]


def test_the_most_similar_blocks_go_into_ssd_1b():
    sources = RULES["ssd_1b"](registered("sdxl")).sources
    assert sources == {
        f"{block}.attentions.{i}.transformer_blocks.3": f"{block}.attentions.{i}.transformer_blocks.6"
        for block in ("down_blocks.2", "up_blocks.0")
        for i in (0, 1)
    }


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("sd2.1", {"bk_base", "bk_small", "bk_tiny"}),
        ("sd1.5", {"bk_base", "bk_small", "bk_tiny"}),
        ("sdxl", {"ssd_1b", "koala_1b", "koala_700m"}),
        ("bk-sdm-v2-base", set()),
    ],
)
def test_rules_are_offered_to_the_teachers_they_were_made_for(name, rules):
    config = registered(name)
    assert set(UNET.depth_rules(config)) == rules
    for other in RULES.keys() - rules:
        with pytest.raises(BadInputError, match="another depth"):
            RULES[other](config)
