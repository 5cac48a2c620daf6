"""Work of blocks and polynomials of it against real models, and the students that a search may visit."""

import numpy as np
import pytest
from budget_models import every_student, small_config
from small_transformers import SMALL_DIT, SMALL_MMDIT
from small_unet import SMALL_UNET

from edgediff.budgets.blocks import REST, block_of, lies_in, work
from edgediff.budgets.costs import PADDED, CostModel, Works
from edgediff.budgets.kept import Kept
from edgediff.budgets.space import Space, Student
from edgediff.families import FAMILIES, Family
from edgediff.metrics.cost import model_cost
from edgediff.pruning import importance_scores
from edgediff.pruning.width import plan_width

TEXT_UNET = {
    **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 8},
    **{"block_out_channels": (32, 64), "attention_head_dim": (2, 4), "cross_attention_dim": 16},
    **{"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")},
    **{"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "transformer_layers_per_block": 2},
}
MODELS = {
    "unet2d": ("UNet2DModel", {**SMALL_UNET, "layers_per_block": 2}),
    "unet2d_condition": ("UNet2DConditionModel", TEXT_UNET),
    "dit": ("DiTTransformer2DModel", SMALL_DIT),
    "mmdit": ("SD3Transformer2DModel", SMALL_MMDIT),
}


@pytest.fixture(params=MODELS, scope="module")
def space(request):
    name, config = MODELS[request.param]
    family = FAMILIES[name]
    return Space(family, dict(family.build(config, "meta").config), blocks=True)


TEXT = FAMILIES["UNet2DConditionModel"]


def test_a_module_belongs_to_its_innermost_block():
    assert block_of(TEXT, "down_blocks.0.resnets.1.conv1") == "down_blocks.0.resnets.1"
    assert block_of(TEXT, "mid_block.attentions.0.transformer_blocks.3.ff.net.0") == (
        "mid_block.attentions.0.transformer_blocks.3"
    )
    assert block_of(TEXT, "mid_block.attentions.0.proj_in") == "mid_block.attentions.0"
    assert block_of(TEXT, "conv_in") == block_of(TEXT, "down_blocks.0") == REST


def test_a_removed_block_takes_along_what_is_in_it():
    assert lies_in("mid_block.resnets.0", "mid_block")
    assert lies_in("up_blocks.2.resnets.1", "down_blocks.0.resnets.1+up_blocks.2.resnets.1")
    assert not lies_in("up_blocks.2.resnets.10", "up_blocks.2.resnets.1")


def test_the_blocks_together_are_the_model(space):
    found, cost = work(space.family, space.config), model_cost(space.family, space.config)
    assert sum(part.params for part in found.values()) == cost.params
    assert sum(part.macs for part in found.values()) == cost.macs
    assert all(part.elements > 0 for part in found.values())


def test_polynomials_cost_every_student_exactly(space):
    cost = CostModel(space)
    students = every_student(space)
    assert len(students) > 5
    for student in students[:: max(1, len(students) // 12)]:
        real = model_cost(space.family, space.student_config(student))
        assert cost(student) == {"params": real.params, "macs": real.macs}


def test_padded_macs_are_those_of_the_next_multiple(space):
    works = Works(space)
    if all(width % PADDED == 0 for width in space.teacher.widths):
        rows = works(space.teacher)
        assert np.allclose(rows[:, 1], rows[:, 2])
    for student in every_student(space)[:20]:
        rows = works(student)
        assert (rows[:, 2] >= rows[:, 1] * (1 - 1e-9)).all()


def test_neighbours_are_one_step_away_and_exist(space):
    students = every_student(space)
    for student in students[:: max(1, len(students) // 10)]:
        for other in space.smaller(student):
            assert space.exists(other) and student in [*space.larger(other), student]
            narrower = [a < b for a, b in zip(other.widths, student.widths, strict=True)]
            assert sum(narrower) + len(other.removed - student.removed) == 1
        for other in space.larger(student):
            assert space.exists(other)


def test_levels_that_the_teacher_keeps_equal_share_an_axis():
    family = FAMILIES["UNet2DModel"]
    space = Space(family, small_config((8, 16, 16, 32)), blocks=False)
    assert space.axes == [["down_blocks.0"], ["down_blocks.1", "down_blocks.2"], ["down_blocks.3"]]
    assert space.blocks == ()
    assert space.widths(Student((4, 8, 12))) == {
        **{"down_blocks.0": 4, "down_blocks.1": 8, "down_blocks.2": 8, "down_blocks.3": 12}
    }
    assert not space.exists(Student((8, 8, 16)))


def test_only_a_family_says_which_levels_are_kept_equal():
    class Free(type(FAMILIES["UNet2DModel"])):
        axes = Family.axes

    space = Space(Free(), small_config((8, 16, 16, 32)), blocks=False)
    assert space.axes == [[f"down_blocks.{level}"] for level in range(4)]


def test_importance_kept_is_the_share_of_the_channels_that_pruning_keeps(space):
    family, config = space.family, space.config
    model = family.build(config)
    scores = importance_scores("random", model, family, seed=3)
    kept = Kept(space, scores)
    assert kept(space.teacher) == pytest.approx(1)
    smallest = min(every_student(space), key=lambda student: (sum(student.widths), len(student.removed)))
    assert 0 < kept(smallest) < 1
    student = Student(smallest.widths)
    _, cuts = plan_width(family, config, space.student_config(student), scores)
    shares = {cut.name: len(cut.kept) / cut.width for cut in cuts}
    # The most important channels hold at least their share of the importance, and less than all of it.
    assert min(shares.values()) <= kept(student) < 1
    for other in space.smaller(space.teacher):
        assert kept(other) < 1


def test_without_scores_a_channel_is_a_channel():
    family = FAMILIES["DiTTransformer2DModel"]
    space = Space(family, dict(family.build(SMALL_DIT, "meta").config), blocks=True)
    kept = Kept(space, None)
    assert kept(Student((16,))) == pytest.approx(0.5)
    half = kept(Student((32,), frozenset({"transformer_blocks.1"})))
    assert 0.4 < half < 0.7
    assert kept(Student((16,), frozenset({"transformer_blocks.1"}))) == pytest.approx(half / 2)
