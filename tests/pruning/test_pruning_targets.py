"""From a ratio to widths, and the check that what was asked for was removed."""

import pytest
import torch
from diffusers import UNet2DModel

from edgediff import families
from edgediff.errors import BadInputError, StageFailedError
from edgediff.metrics.cost import parameter_count
from edgediff.pruning import check_reached, widths_for_ratio
from edgediff.pruning.targets import uniform_widths

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


CELEBA = config((128, 128, 256, 256, 512), (3,), norm_num_groups=32, attention_head_dim=None, layers_per_block=2)


def named(*widths):
    return {f"down_blocks.{i}": width for i, width in enumerate(widths)}


def student(teacher, widths, device="meta"):
    return UNET.build(UNET.student_config(teacher, widths), device)


@pytest.mark.parametrize(
    ("ratio", "widths"),
    [
        (0, (32, 64, 128)),
        (0.01, (32, 64, 128)),
        (0.25, (24, 48, 96)),
        (0.3, (24, 44, 88)),  # 22.4, 44.8, 89.6: to the nearest 4, 4, 8
        (0.5, (16, 32, 64)),
        (0.875, (4, 8, 16)),
        (0.9, (4, 8, 16)),  # 3.2, 6.4, 12.8
    ],
)
def test_a_ratio_rounds_every_level_to_its_step(ratio, widths):
    assert widths_for_ratio(UNET, config(), ratio) == named(*widths)


def test_a_ratio_of_90_percent_leaves_a_hundredth_of_the_parameters():
    widths = widths_for_ratio(UNET, CELEBA, 0.9)
    assert widths == named(12, 12, 24, 24, 52)
    share = parameter_count(student(CELEBA, widths)) / parameter_count(student(CELEBA, UNET.levels(CELEBA)))
    assert 0.009 < share < 0.011


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(BadInputError, match=r"must be in \[0, 1\)"):
        widths_for_ratio(UNET, config(), ratio)


def test_a_level_without_channels_is_refused_with_the_highest_ratio_that_works():
    with pytest.raises(BadInputError, match=r"leave down_blocks.0 without channels") as error:
        widths_for_ratio(UNET, config(), 0.97)
    highest = float(error.value.hint.rpartition(" ")[2])
    assert highest == pytest.approx(0.90625, abs=1e-4)  # level 1 would round to 4 channels, as many as level 0 keeps
    assert widths_for_ratio(UNET, config(), highest) == named(4, 8, 16)
    with pytest.raises(BadInputError):
        widths_for_ratio(UNET, config(), highest + 2e-4)


def test_widths_that_no_student_can_have_are_refused_with_the_next_ratios():
    teacher = config((32, 40), (), attention_head_dim=None)
    with pytest.raises(BadInputError, match=r"down_blocks.0 and down_blocks.1 must differ") as error:
        widths_for_ratio(UNET, teacher, 0.8)  # 6.4 and 8 channels: 8 and 8
    below, above = map(float, error.value.hint.removeprefix("nearest that work: ").split(" and "))
    assert below == 0.75 and widths_for_ratio(UNET, teacher, above) == named(4, 8)
    assert widths_for_ratio(UNET, teacher, 0.75) == named(8, 12)
    assert widths_for_ratio(UNET, teacher, 0.85) == named(4, 8)


def test_uniform_widths_visit_every_student_of_a_uniform_ratio():
    teacher = config((12, 24), (), attention_head_dim=4, norm_num_groups=4)
    seen = [widths for _, widths in uniform_widths(UNET, teacher)]
    scanned = []
    for step in range(10_000):
        try:
            widths = widths_for_ratio(UNET, teacher, step / 10_000)
        except BadInputError:
            continue
        if widths not in scanned:
            scanned.append(widths)
    assert seen == scanned
    for ratio, widths in uniform_widths(UNET, teacher):
        assert widths_for_ratio(UNET, teacher, ratio) == widths


@pytest.mark.parametrize("ratio", [0, 0.25, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("teacher", [config(), CELEBA], ids=["main", "celeba"])
def test_what_a_ratio_gives_passes_its_check(teacher, ratio):
    check_reached(UNET, teacher, UNET.student_config(teacher, widths_for_ratio(UNET, teacher, ratio)), ratio)


def test_a_level_that_kept_too_much_is_named():
    widths = named(16, 60, 64)
    with pytest.raises(StageFailedError, match=r"down_blocks.1 is 0.0625, asked: 0.5"):
        check_reached(UNET, config(), UNET.student_config(config(), widths), 0.5)


def test_a_student_that_lost_nothing_is_refused():
    teacher = config()
    widths = widths_for_ratio(UNET, teacher, 0.01)
    with pytest.raises(StageFailedError, match=r"removed no parameters.*down_blocks.0, down_blocks.1") as error:
        check_reached(UNET, teacher, UNET.student_config(teacher, widths), 0.01)
    enough = float(error.value.hint.rpartition(" ")[2]) + 1e-3
    assert widths_for_ratio(UNET, teacher, enough) != UNET.levels(teacher)
