"""What the UNet2DModel family says about levels, steps, student configs and inputs."""

import math

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding

from edgediff import families
from edgediff.errors import BadInputError
from edgediff.families.unets import time_columns
from edgediff.pruning.depth import prune_depth

UNET = families.FAMILIES["UNet2DModel"]


def config(widths=(32, 64, 128), attention=(2,), **changes):
    down = tuple("AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(len(widths)))
    up = tuple("AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(len(widths))))
    settings = {
        **{"sample_size": 16, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8},
        **{"block_out_channels": widths, "down_block_types": down, "up_block_types": up},
        **changes,
    }
    with torch.device("meta"):
        return UNet2DModel(**settings).config


def student(teacher, *widths):
    return UNET.student_config(teacher, dict(zip(UNET.levels(teacher), widths, strict=True)))


def test_a_family_is_found_by_model_class_and_class_name():
    with torch.device("meta"):
        model = UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    assert families.of(model) is families.of(UNet2DModel) is families.of("UNet2DModel") is UNET


@pytest.mark.parametrize("unknown", [AutoencoderKL, torch.nn.Linear(2, 2), "UNet3DModel"])
def test_an_unknown_class_is_refused_with_the_supported_ones(unknown):
    with pytest.raises(BadInputError) as error:
        families.of(unknown)
    assert "UNet2DModel" in error.value.hint


def test_levels_are_the_block_widths_in_order():
    assert UNET.levels(config()) == {"down_blocks.0": 32, "down_blocks.1": 64, "down_blocks.2": 128}


@pytest.mark.parametrize(
    ("widths", "attention", "head_dim", "steps"),
    [
        ((32, 64, 128), (2,), 8, (4, 4, 8)),
        ((32, 64, 128), (1,), 16, (4, 16, 16)),  # the middle block attends at the last level too
        ((32, 64, 128), (2,), None, (4, 4, 4)),
        ((24, 48, 72), (2,), 6, (4, 4, 12)),  # whole heads that are also multiples of 4
        ((30, 60), (1,), None, (2, 4)),
        ((32, 64, 64, 64), (2,), 16, (4, 16, 16, 16)),  # equal neighbours must stay equal, so they share a step
    ],
)
def test_granularity_keeps_heads_whole_and_divides_the_width(widths, attention, head_dim, steps):
    teacher = config(widths, attention, attention_head_dim=head_dim, norm_num_groups=2)
    assert tuple(UNET.granularity(teacher).values()) == steps


def test_a_model_without_attention_needs_no_head_steps():
    teacher = config((32, 64), (), attention_head_dim=64, add_attention=False)
    assert tuple(UNET.granularity(teacher).values()) == (4, 4)


def test_a_learned_variance_is_refused():
    with pytest.raises(BadInputError, match="reads 1 channels and predicts 2"):
        UNET.levels(config((32, 64), (), out_channels=2))


def test_heads_that_do_not_fill_a_level_are_refused():
    with pytest.raises(BadInputError, match=r"down_blocks.1: 24, 64"):
        UNET.granularity(config((32, 64), (1,), attention_head_dim=24))


@pytest.mark.parametrize(
    ("teacher_widths", "teacher_groups", "widths", "groups"),
    [
        ((32, 64, 128), 8, (32, 64, 128), 8),
        ((32, 64, 128), 8, (8, 16, 32), 2),
        ((32, 64, 128), 8, (4, 8, 16), 1),
        ((32, 64, 128), 8, (24, 48, 96), 6),
        ((128, 256, 512), 32, (12, 24, 52), 2),  # 4 divides all three, but would leave groups of 3
    ],
)
def test_norm_groups_keep_the_teachers_group_size(teacher_widths, teacher_groups, widths, groups):
    teacher = config(teacher_widths, norm_num_groups=teacher_groups, attention_head_dim=None)
    assert student(teacher, *widths)["norm_num_groups"] == groups
    assert all(width % groups == 0 for width in widths)


def test_every_group_norm_of_every_student_divides_its_channels():
    teacher = config((16, 24, 32), (1,), attention_head_dim=None, norm_num_groups=4)
    built = 0
    for first in range(4, 17, 4):
        for second in range(4, 25, 4):
            for third in range(4, 33, 4):
                if first != second and second != third:
                    UNET.build(student(teacher, first, second, third), "meta")  # GroupNorm itself raises otherwise
                    built += 1
    assert built == 140


def test_the_attention_norm_groups_of_the_middle_block_follow_too():
    teacher = config((32, 64), (1,), attn_norm_num_groups=16)
    changed = student(teacher, 8, 16)
    assert changed["attn_norm_num_groups"] == 4
    UNET.build(changed, "meta")


def test_an_explicit_time_embedding_width_keeps_its_proportion():
    assert student(config(time_embedding_dim=64), 16, 32, 64)["time_embedding_dim"] == 32
    assert student(config(), 16, 32, 64)["time_embedding_dim"] is None


def test_the_teachers_widths_give_the_teachers_config_without_private_keys():
    teacher = config()
    assert student(teacher, 32, 64, 128) == {k: v for k, v in teacher.items() if not k.startswith("_")}


def test_a_config_read_from_json_has_lists_and_works_too():
    teacher = {**config(), "block_out_channels": [32, 64, 128], "_name_or_path": "somewhere"}
    assert student(teacher, 8, 16, 32)["block_out_channels"] == (8, 16, 32)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((16, 32, 60), "width of down_blocks.2 cannot be 60"),
        ((0, 32, 64), "width of down_blocks.0 cannot be 0"),
        ((36, 32, 64), "width of down_blocks.0 cannot be 36"),
        ((16, 16, 64), "down_blocks.0 and down_blocks.1 must differ"),
    ],
)
def test_impossible_widths_are_refused_by_level(widths, message):
    with pytest.raises(BadInputError, match=message):
        student(config(), *widths)


def test_equal_neighbours_must_stay_equal():
    with pytest.raises(BadInputError, match=r"down_blocks.1 and down_blocks.2 must be equal"):
        student(config((32, 64, 64), (1,), attention_head_dim=None), 16, 32, 16)


def test_widths_of_other_levels_are_refused():
    with pytest.raises(BadInputError, match="other levels"):
        UNET.student_config(config(), {"down_blocks.0": 16, "blocks.1": 32, "down_blocks.2": 64})


def test_a_first_level_too_narrow_for_its_time_embedding_is_refused():
    teacher = config((30, 64), (1,), freq_shift=1, attention_head_dim=None, norm_num_groups=2)
    with pytest.raises(BadInputError, match="too small for the time embedding: 2"):
        student(teacher, 2, 4)  # one frequency over (2 / 2 - 1) would be NaN
    assert student(teacher, 4, 8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"resnet_time_scale_shift": "scale_shift"}, "scale_shift"),
        ({"time_embedding_type": "fourier"}, "fourier"),
        ({"class_embed_type": "identity", "num_class_embeds": 4}, "identity"),
        ({"down_block_types": ("SkipDownBlock2D", "DownBlock2D", "DownBlock2D")}, "SkipDownBlock2D"),
    ],
)
def test_features_that_cannot_be_pruned_are_refused(change, named):
    with pytest.raises(BadInputError, match=named):
        UNET.levels({**config(), **change})


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("freq_shift", [0, 1])
@pytest.mark.parametrize("width", [32, 24, 16, 12, 4])
def test_time_columns_pick_the_nearest_frequency_in_both_halves(width, freq_shift, flip):
    columns = time_columns(32, width, freq_shift)
    half = width // 2
    assert len(set(columns)) == width
    assert columns[half:] == [16 + column for column in columns[:half]]
    log_of = lambda dim, i: -math.log(10000) * i / (dim // 2 - freq_shift)  # noqa: E731
    for i, column in enumerate(columns[:half]):
        distance = abs(log_of(32, column) - log_of(width, i))
        assert distance <= min(abs(log_of(32, other) - log_of(width, i)) for other in range(16)) + 1e-12
    if width in (32, 16, 4) and freq_shift == 0:  # here the student's frequencies are a subset of the teacher's
        t = torch.tensor([1.0, 37.0, 900.0])
        teacher = get_timestep_embedding(t, 32, flip_sin_to_cos=flip, downscale_freq_shift=0)
        own = get_timestep_embedding(t, width, flip_sin_to_cos=flip, downscale_freq_shift=0)
        torch.testing.assert_close(teacher[:, columns], own, rtol=0, atol=1e-3)  # float32 sines of arguments up to 900


def test_time_columns_of_an_odd_width_keep_the_zero_at_the_end():
    assert time_columns(9, 9, 0) == list(range(9))
    assert time_columns(9, 5, 0) == [0, 2, 4, 6, 8]


def test_example_inputs_run_the_model_and_repeat_exactly():
    teacher = config((8, 16), (1,), norm_num_groups=2, num_class_embeds=3)
    inputs, again = UNET.example_inputs(teacher, 4, 8), UNET.example_inputs(teacher, 4, 8)
    assert tuple(inputs) == UNET.input_names(teacher) == ("sample", "timestep", "class_labels")
    assert inputs["sample"].shape == (4, 1, 8, 8)
    assert inputs["timestep"].shape == (4,)
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    model = UNET.build(teacher)
    assert torch.equal(UNET.prediction(model, **inputs), model(**inputs).sample)


def test_example_inputs_take_the_resolution_of_the_config():
    assert UNET.example_inputs(config())["sample"].shape == (1, 1, 16, 16)
    assert UNET.example_inputs(config(sample_size=(16, 8)))["sample"].shape == (1, 1, 16, 8)
    assert UNET.example_inputs(config(sample_size=None))["sample"].shape == (1, 1, 16, 16)
    assert UNET.input_names(config()) == ("sample", "timestep")
    assert UNET.output_names == ("out_sample",)


def test_building_on_meta_allocates_nothing():
    assert all(parameter.is_meta for parameter in UNET.build(config(), "meta").parameters())


def test_layers_go_at_all_levels_at_once_as_the_config_says_one_number():
    teacher = config((32, 64), (1,), layers_per_block=3)
    first = [
        *("down_blocks.0.resnets.1", "up_blocks.1.resnets.2"),
        *("down_blocks.1.resnets.1", "down_blocks.1.attentions.1", "up_blocks.0.resnets.2", "up_blocks.0.attentions.2"),
    ]
    one, two, middle = UNET.blocks(teacher)
    assert (one, middle) == ("+".join(first), "mid_block")
    cut = UNET.without_blocks(teacher, [one, middle])
    assert (cut.config["layers_per_block"], cut.config["mid_block_type"]) == (2, None)
    assert cut.sources == {
        **{"down_blocks.0.resnets.1": "down_blocks.0.resnets.2", "up_blocks.1.resnets.2": "up_blocks.1.resnets.3"},
        **{f"down_blocks.1.{part}.1": f"down_blocks.1.{part}.2" for part in ("resnets", "attentions")},
        **{f"up_blocks.0.{part}.2": f"up_blocks.0.{part}.3" for part in ("resnets", "attentions")},
    }
    assert UNET.without_blocks(teacher, [two]).sources == {
        **{"up_blocks.1.resnets.1": "up_blocks.1.resnets.2", "up_blocks.1.resnets.2": "up_blocks.1.resnets.3"},
        **{
            f"up_blocks.0.{part}.{i}": f"up_blocks.0.{part}.{i + 1}"
            for part in ("resnets", "attentions")
            for i in (1, 2)
        },
    }


def test_without_layers_to_spare_only_the_middle_can_go():
    assert UNET.blocks(config()) == ("mid_block",)
    assert UNET.blocks(config(mid_block_type=None)) == ()
    with pytest.raises(BadInputError, match="SkipDownBlock2D"):
        UNET.blocks({**config(), "down_block_types": ("SkipDownBlock2D", "DownBlock2D", "DownBlock2D")})


@pytest.mark.parametrize("removed", [(0,), (0, 1, 2)])
def test_a_student_of_fewer_layers_keeps_the_teachers_feature_points(removed):
    torch.manual_seed(0)
    teacher = UNET.build(config((8, 16), (1,), norm_num_groups=2, layers_per_block=3)).eval()
    blocks = UNET.blocks(teacher.config)
    student, report = prune_depth(teacher, UNET, UNET.without_blocks(teacher.config, [blocks[i] for i in removed]))
    assert report.removed == tuple(blocks[i] for i in removed)
    inputs = UNET.example_inputs(teacher.config, 2, 8)
    compared = [student.config, teacher.config]
    mine, theirs = (UNET.feature_points(of, compared) for of in compared)
    prediction, ours = UNET.prediction_and_features(student, mine, **inputs)
    _, targets = UNET.prediction_and_features(teacher, theirs, **inputs)
    assert torch.isfinite(prediction).all()
    assert [map_.shape for map_ in ours] == [map_.shape for map_ in targets]
    # A student without a middle block is compared in its levels alone, each with one of its teacher's.
    assert ("mid_block" in mine, len(set(mine)), mine) == (2 not in removed, 4 if 2 in removed else 5, theirs)
