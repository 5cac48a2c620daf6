"""TinyFusion: local choices, gates, low-rank updates, and that useless blocks are found."""

import copy
import itertools
import math

import pytest
import torch
from depth_models import DIT, MMDIT, dit, mmdit, silence
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import nn

from edgediff import families
from edgediff.errors import BadInputError, StageFailedError
from edgediff.pruning import learn_depth
from edgediff.pruning.depth import without
from edgediff.pruning.learned_depth import LocalChoice, LowRankUpdate, _gate, local_groups
from edgediff.recipe import TinyFusionConfig

SCHEDULE = DDPMScheduler(num_train_timesteps=100, prediction_type="sample")
BLOCKS = tuple("abcdefgh")


def stripes():
    """Images (16, 1, 8, 8) of stripes in four directions, and the direction as class."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    angles, phases = torch.arange(16) // 4 * math.pi / 4, torch.arange(16) % 4 * 1.5
    waves = [x * angle.cos() + y * angle.sin() + phase for angle, phase in zip(angles, phases, strict=True)]
    return torch.stack(waves)[:, None].sin(), {"class_labels": torch.arange(16) // 4}


@pytest.fixture(scope="module")
def taught():
    """A DiT that has learned a little, all of it in blocks 0 and 3: those between add nothing and were not trained."""
    model = dit()
    for block in ("transformer_blocks.1", "transformer_blocks.2"):
        silence(model, block)
        model.get_submodule(block).requires_grad_(False)
    x0, rows = stripes()
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        timesteps = torch.randint(0, 100, (16,), generator=generator)
        sample = SCHEDULE.add_noise(x0, torch.randn(x0.shape, generator=generator), timesteps)
        loss = nn.functional.mse_loss(DIT.prediction(model, sample, timesteps, **rows), x0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(True)


def learned(model, keep=2, seed=0, on_step=lambda loss: None, **changes):
    settings = {"steps": 40, "batch_size": 8, "rank": 2, "gate_learning_rate": 0.3, **changes}
    x0, rows = stripes()
    return learn_depth(
        model,
        DIT,
        keep,
        TinyFusionConfig(**settings),
        x0=x0,
        scheduler=SCHEDULE,
        conditioning=rows,
        seed=seed,
        on_step=on_step,
    )


@pytest.mark.parametrize(("group_size", "recovery"), [(2, "lora"), (4, "lora"), (2, "full"), (4, "frozen")])
def test_useless_blocks_are_found(taught, group_size, recovery):
    found = learned(taught, group_size=group_size, recovery=recovery)
    assert found.removed == ("transformer_blocks.1", "transformer_blocks.2")
    assert list(found.stay) == list(DIT.blocks(taught.config))
    assert sum(found.stay.values()) == pytest.approx(2, abs=1e-5)
    assert min(found.stay["transformer_blocks.0"], found.stay["transformer_blocks.3"]) > 0.5


def test_learning_repeats_and_leaves_the_model_alone(taught):
    before = {name: value.clone() for name, value in taught.state_dict().items()}
    state = torch.random.get_rng_state()
    losses = []
    one = learned(taught, steps=3, on_step=losses.append)
    with torch.no_grad():
        assert learned(taught, steps=3) == one
    assert learned(taught, steps=3, seed=1) != one
    assert len(losses) == 3 and len(set(losses)) == 3
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in taught.state_dict().items())
    assert not any(module._forward_hooks for module in taught.modules())


def test_what_stays_is_what_was_asked(taught):
    for keep in range(1, 5):
        assert len(learned(taught, keep=keep, steps=1).removed) == 4 - keep


def test_joint_blocks_are_gated_under_flow_matching():
    model = mmdit()
    inputs = MMDIT.example_inputs(model.config, 4)
    rows = {key: inputs[key] for key in ("encoder_hidden_states", "pooled_projections")}
    settings = TinyFusionConfig(steps=2, batch_size=4, group_size=3)
    scheduler = FlowMatchEulerDiscreteScheduler()
    found = learn_depth(model, MMDIT, 2, settings, x0=inputs["sample"], scheduler=scheduler, conditioning=rows)
    assert len(found.removed) == 1 and sum(found.stay.values()) == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize(("family", "build"), [(DIT, dit), (MMDIT, mmdit)], ids=["dit", "mmdit"])
def test_open_and_closed_gates_give_the_stock_model_without_the_closed_ones(family, build):
    model, removed = build(), ("transformer_blocks.0", "transformer_blocks.2")
    inputs = family.example_inputs(model.config, 2)
    with torch.no_grad():
        expected = family.prediction(without(model, family, removed), **inputs)
        gates = {block: torch.tensor(float(block not in removed)) for block in family.blocks(model.config)}
        for block in gates:
            model.get_submodule(block).register_forward_hook(_gate(gates, block), with_kwargs=True)
        assert torch.equal(family.prediction(model, **inputs), expected)
        gates["transformer_blocks.1"] = torch.tensor(0.5)
        assert not torch.allclose(family.prediction(model, **inputs), expected)


@pytest.mark.parametrize(
    ("keep", "size", "quotas"),
    [
        (4, 2, [1, 1, 1, 1]),
        (4, 4, [2, 2]),
        (4, 8, [4]),
        (5, 2, [1, 2, 1, 1]),
        (3, 4, [2, 1]),
        (8, 2, [2, 2, 2, 2]),
        (0, 4, [0, 0]),
        (4, 3, [2, 1, 1]),  # groups of 3, 3 and 2
    ],
)
def test_what_stays_is_spread_over_neighbouring_groups(keep, size, quotas):
    groups = local_groups(BLOCKS, keep, size)
    assert [block for group, _ in groups for block in group] == list(BLOCKS)
    assert [quota for _, quota in groups] == quotas


@pytest.mark.parametrize(("total", "size"), list(itertools.product((1, 5, 23, 28), (2, 3, 4, 14))))
def test_quotas_always_add_up_and_fit(total, size):
    for keep in range(total + 1):
        groups = local_groups(range(total), keep, size)
        assert sum(quota for _, quota in groups) == keep
        assert all(0 <= quota <= len(group) for group, quota in groups)
        shares = [quota - len(group) * keep / total for group, quota in groups]
        assert all(abs(share) < 1 + 1e-9 for share in shares)


def test_a_choice_draws_masks_of_its_kind_in_proportion_to_their_probability():
    choice = LocalChoice("abcd", 2)
    assert choice.masks.shape == (6, 4) and (choice.masks.sum(1) == 2).all()
    assert len({tuple(mask.tolist()) for mask in choice.masks}) == 6
    with torch.no_grad():
        choice.logits.copy_(torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.1]).log())
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([choice.sample(1.0, generator) for _ in range(2000)]).detach()
    assert set(draws.round(decimals=5).unique().tolist()) == {0.0, 1.0}
    # Two thousand draws of probability p miss it by 3 · sqrt(p (1 − p) / 2000) < 0.034 in 997 of 1,000 cases.
    expected = torch.tensor(list(choice.stay().values()))
    torch.testing.assert_close(draws.mean(0), expected, rtol=0, atol=0.034)
    assert choice.removed() == ["c", "d"]


def test_the_gradient_of_a_draw_is_that_of_its_relaxation():
    choice = LocalChoice("ab", 1)
    gates = choice.sample(0.7, torch.Generator().manual_seed(3))
    gates[0].backward()
    uniform = torch.rand(2, generator=torch.Generator().manual_seed(3))
    logits = torch.zeros(2, requires_grad=True)
    soft = torch.softmax((logits - torch.log(-torch.log(uniform))) / 0.7, 0)
    (soft @ choice.masks)[0].backward()
    torch.testing.assert_close(choice.logits.grad, logits.grad)
    assert logits.grad.abs().max() > 0


def test_a_low_rank_update_adds_nothing_until_it_is_trained():
    layer = nn.Linear(6, 5)
    update = LowRankUpdate(layer, 2, torch.Generator().manual_seed(0))
    x = torch.randn(3, 4, 6)
    assert torch.equal(update(x), torch.zeros(3, 4, 5))
    update(x).sum().backward()
    assert update.up.grad.abs().max() > 0 and update.down.grad.abs().max() == 0
    with torch.no_grad():
        update.up.fill_(1)
    matrix = torch.stack([update(row) for row in torch.eye(6)], dim=1)
    assert torch.linalg.matrix_rank(matrix) <= 2


def test_the_first_loss_is_the_same_with_and_without_an_update(taught):
    first = {}
    for recovery in ("lora", "full", "frozen"):
        losses = []
        learned(taught, steps=1, recovery=recovery, on_step=losses.append)
        first[recovery] = losses[0]
    assert len(set(first.values())) == 1


def test_blocks_that_cannot_be_bypassed_are_named():
    model = UNet2DModel(
        **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 2, "norm_num_groups": 2},
        **{"block_out_channels": (4, 8), "attention_head_dim": 4},
        **{"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    )
    unet = families.of(model)
    with pytest.raises(BadInputError, match=r"bypassed one by one, not so: down_blocks\.0\.resnets\.1"):
        learn_depth(model, unet, 1, TinyFusionConfig(), x0=torch.zeros(2, 1, 8, 8), scheduler=SCHEDULE)


def test_a_loss_that_is_not_finite_stops_with_its_step(taught):
    broken = copy.deepcopy(taught)
    with torch.no_grad():
        broken.proj_out_2.bias.fill_(float("inf"))
    with pytest.raises(StageFailedError, match="not finite at step 0: inf"):
        learned(broken)
