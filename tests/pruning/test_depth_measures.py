"""How much blocks matter: every measure finds a useless block, and says what its paper says."""

import pytest
import torch
from depth_models import CONDITIONAL, DIT, MMDIT, dit, mmdit, silence, small_sdxl
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import nn

from edgediff import families
from edgediff.errors import BadInputError, StageFailedError
from edgediff.pruning import BLOCK_MEASURES, block_importance, forwards, measurements
from edgediff.pruning.blocks.probe import TIMESTEPS, Calibration
from edgediff.pruning.depth import without

UNET = families.FAMILIES["UNet2DModel"]
LOOKING = [name for name, measure in BLOCK_MEASURES.items() if measure.looks_at == "images"]
FIXED = ["first", "last", "evenly", "random"]


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


LABELS = {"class_labels": torch.tensor([0, 3, 1])}
SCHEDULE = DDPMScheduler(num_train_timesteps=50)


def importance(name, model, images, **more):
    return block_importance(name, model, DIT, x0=images, scheduler=SCHEDULE, conditioning=LABELS, **more)


@pytest.mark.parametrize("name", ["magnitude", *LOOKING])
def test_a_silent_block_matters_least(name, images):
    model = dit()
    silence(model, "transformer_blocks.2")
    found = importance(name, model, images)
    if name == "oracle":  # a block may do harm in a model that was never trained, a silent one does nothing
        assert found["transformer_blocks.2"] == 0 and min(abs(found[f"transformer_blocks.{i}"]) for i in (0, 1, 3)) > 0
    else:
        assert min(found, key=found.get) == "transformer_blocks.2"
    assert list(found) == list(DIT.blocks(model.config))


@pytest.mark.parametrize("name", LOOKING)
def test_joint_blocks_are_measured_under_flow_matching(name):
    model = mmdit()
    silence(model, "transformer_blocks.1")
    inputs = MMDIT.example_inputs(model.config, 2)
    rows = {key: inputs[key] for key in ("encoder_hidden_states", "pooled_projections")}
    found = block_importance(
        name, model, MMDIT, x0=inputs["sample"], scheduler=FlowMatchEulerDiscreteScheduler(), conditioning=rows
    )
    assert min(found, key=lambda block: abs(found[block])) == "transformer_blocks.1"
    assert abs(found["transformer_blocks.1"]) < 1e-6


@pytest.mark.parametrize("name", BLOCK_MEASURES)
def test_the_model_is_left_alone_and_importances_repeat(name, images):
    model = dit().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    one, two = (importance(name, model, images, count=2, seed=3) for _ in range(2))
    assert one == two
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", BLOCK_MEASURES)
def test_progress_is_told_as_announced(name, images):
    steps = []
    importance(name, dit(layers=3), images, on_step=lambda: steps.append(1))
    assert len(steps) == measurements(name, 3)


def test_what_a_measure_costs_is_what_it_runs(images):
    """Forwards are counted at the patch embedding, which every forward of every candidate passes once."""
    seen = []
    original = nn.Conv2d.forward

    def counted(self, x):
        seen.append(len(x))
        return original(self, x)

    for name in BLOCK_MEASURES:
        seen.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.Conv2d, "forward", counted)
            importance(name, dit(layers=3), images)
        assert sum(seen) == forwards(name, 3, len(images))


def test_block_influence_is_one_minus_the_cosine(images):
    """A block that turns its input around scores 2; ones that scale it score 0, whatever the scale."""
    model = dit()
    for i, factor in enumerate((-1.0, 1.0, 5.0, -0.5)):
        model.transformer_blocks[i].forward = lambda hidden, *args, factor=factor, **kwargs: factor * hidden
    found = importance("block_influence", model, images)
    assert list(found.values()) == pytest.approx([2, 0, 0, 2], abs=1e-5)


def test_oracle_and_laptop_diff_compare_with_the_stock_model_without_the_block(images):
    model = dit()
    timesteps = torch.linspace(0, 49, TIMESTEPS).long().tolist()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
    lighter = without(model, DIT, {"transformer_blocks.1"})
    distortion, growth = [], []
    with torch.no_grad():
        for timestep in timesteps:
            at = torch.full((3,), timestep)
            sample = SCHEDULE.add_noise(images, noise, at)
            whole, cut = (DIT.prediction(each, sample, at, **LABELS) for each in (model, lighter))
            distortion.append((whole - cut).square().mean())
            growth.append((cut - noise).square().mean() - (whole - noise).square().mean())
    for name, expected in (("laptop_diff", distortion), ("oracle", growth)):
        found = importance(name, model, images, seed=4)["transformer_blocks.1"]
        assert found == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)


def test_distortions_of_single_removals_nearly_add_up(images):
    """LAPTOP-Diff's premise, on blocks that change little, as most blocks of a deep model do."""
    model = dit()
    with torch.no_grad():
        for block in model.transformer_blocks:
            block.attn1.to_out[0].weight.mul_(0.1)
            block.ff.net[2].weight.mul_(0.1)
    found = importance("laptop_diff", model, images)
    calibration = Calibration(DIT, images, SCHEDULE, LABELS)
    both = without(model, DIT, {"transformer_blocks.1", "transformer_blocks.3"})
    with torch.no_grad():
        together = torch.stack(
            [
                (calibration.prediction(both, t) - calibration.prediction(model, t)).square().mean()
                for t in calibration.timesteps()
            ]
        ).mean()
    added = found["transformer_blocks.1"] + found["transformer_blocks.3"]
    assert added == pytest.approx(together.item(), rel=0.5)


def test_the_plain_choices():
    model = dit(layers=6)
    order = {name: block_importance(name, model, DIT, count=2) for name in FIXED}
    blocks = DIT.blocks(model.config)
    assert sorted(blocks, key=order["first"].get) == list(blocks)
    assert sorted(blocks, key=order["last"].get) == list(reversed(blocks))
    assert sorted(blocks, key=order["evenly"].get)[:2] == [blocks[1], blocks[4]]
    assert order["random"] != block_importance("random", model, DIT, seed=1)


def unet(**changes):
    torch.manual_seed(0)
    return UNet2DModel(
        **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 2, "norm_num_groups": 2},
        **{"block_out_channels": (4, 8), "attention_head_dim": 4},
        **{"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        **changes,
    ).eval()


@pytest.mark.parametrize("name", BLOCK_MEASURES)
def test_blocks_of_a_unet_are_measured(name, images):
    model = unet()
    found = block_importance(name, model, UNET, x0=images, scheduler=SCHEDULE, count=1)
    assert list(found) == list(UNET.blocks(model.config)) and len(found) > 1


@pytest.mark.parametrize("name", LOOKING)
def test_a_silent_transformer_block_in_a_unet_matters_least(name):
    model = small_sdxl()
    blocks = [block for block in CONDITIONAL.blocks(model.config) if "+" not in block and "transformer_blocks" in block]
    silence(model, blocks[0])
    inputs = CONDITIONAL.example_inputs(model.config, 2)
    rows = {"encoder_hidden_states": inputs["encoder_hidden_states"]}
    found = block_importance(name, model, CONDITIONAL, x0=inputs["sample"], scheduler=SCHEDULE, conditioning=rows)
    assert min(found, key=lambda block: abs(found[block])) == blocks[0]


def test_a_half_precision_teacher_is_measured_in_float32(images):
    half = importance("laptop_diff", dit().bfloat16(), images.bfloat16())
    assert half == pytest.approx(importance("laptop_diff", dit(), images), rel=0.1)


def test_refusals(images):
    with pytest.raises(BadInputError) as error:
        importance("block_influense", dit(), images)
    assert "did you mean: block_influence" in error.value.hint
    with pytest.raises(BadInputError, match="needs clean images and a noise schedule"):
        block_importance("oracle", dit(), DIT, x0=images)


@pytest.mark.parametrize("name", ["magnitude", *LOOKING])
def test_an_importance_that_is_not_finite_names_its_block(name, images):
    model = dit()
    with torch.no_grad():
        model.transformer_blocks[1].ff.net[2].weight[0, 0] = float("nan")
    with pytest.raises(StageFailedError, match=r"importance of transformer_blocks\.\d is not finite: nan"):
        importance(name, model, images)
