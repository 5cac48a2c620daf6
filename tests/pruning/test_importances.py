"""Importances: their formulas, their stopping rule, their seeds and their refusals."""

import copy

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

from edgediff import families
from edgediff.errors import BadInputError, StageFailedError
from edgediff.pruning import IMPORTANCES, importance_scores
from edgediff.pruning.importance import Probe, denoising_loss, diff_pruning, taylor

UNET = families.FAMILIES["UNet2DModel"]


class Scale(nn.Module):
    """y = w · x: its gradients can be written down."""

    def __init__(self, *weights):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights, dtype=torch.float64))


def linear_loss(slopes):
    """Loss at t is slopes[t] · Σ w, so ∂L_t/∂w = slopes[t]."""
    return lambda model, t: slopes[t] * model.w.sum()


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return UNet2DModel(
        **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 2},
        **{"block_out_channels": (4, 8), "attention_head_dim": 4, "dropout": 0.5},
        **{"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    )


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def scheduler(steps=5, prediction_type="epsilon"):
    return DDPMScheduler(num_train_timesteps=steps, prediction_type=prediction_type)


@pytest.mark.parametrize("name", IMPORTANCES)
def test_every_importance_scores_every_element_and_leaves_the_model_alone(tiny, images, name):
    before = {key: value.clone() for key, value in tiny.state_dict().items()}
    scores = importance_scores(name, tiny, UNET, x0=images, scheduler=scheduler())
    assert {k: v.shape for k, v in scores.items()} == {k: v.shape for k, v in tiny.named_parameters()}
    assert all(score.dtype == torch.float32 and (score >= 0).all() for score in scores.values())
    assert not any(score.requires_grad for score in scores.values())
    assert all(torch.equal(value, before[key]) for key, value in tiny.state_dict().items())
    assert tiny.training
    assert all(parameter.grad is None for parameter in tiny.parameters())


@pytest.mark.parametrize("name", IMPORTANCES)
def test_scores_repeat_exactly_and_do_not_touch_the_random_state(tiny, images, name):
    state = torch.random.get_rng_state()
    one, two = (importance_scores(name, tiny, UNET, x0=images, scheduler=scheduler(), seed=3) for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_only_the_gradient_importances_ask_for_data():
    assert {name for name, importance in IMPORTANCES.items() if importance.needs_data} == {"taylor", "diff_pruning"}


def test_magnitude_is_the_squared_weight(tiny):
    scores = importance_scores("magnitude", tiny, UNET)
    assert torch.equal(scores["conv_in.weight"], tiny.conv_in.weight.detach() ** 2)


def test_random_depends_on_the_seed_alone(tiny):
    one, two = (importance_scores("random", tiny, UNET, seed=seed) for seed in (0, 1))
    assert not torch.equal(one["conv_in.weight"], two["conv_in.weight"])
    assert min(float(s.min()) for s in one.values()) >= 0 and max(float(s.max()) for s in one.values()) < 1


def test_taylor_sums_absolute_changes_and_diff_pruning_sums_gradients_first():
    model = Scale(2.0, -3.0)
    slopes = [5.0, -1.0, 2.0]
    probe = Probe(linear_loss(slopes), num_train_timesteps=3)
    assert taylor(model, probe)["w"].tolist() == [2 * 8, 3 * 8]
    # ΣL' = 5 − 1 + 2 with no loss under the threshold of 0, which negative losses would be
    positive = Probe(lambda m, t: slopes[t] * m.w.sum() + 100, num_train_timesteps=3)
    assert diff_pruning(model, positive)["w"].tolist() == [2 * 6, 3 * 6]


def test_taylor_spreads_its_timesteps_over_a_long_schedule():
    seen = []

    def loss_at(model, timestep):
        seen.append(timestep)
        return model.w.sum()

    taylor(Scale(1.0), Probe(loss_at, num_train_timesteps=1000))
    assert len(seen) == len(set(seen)) == 32
    assert seen[0] == 0
    assert seen[-1] >= 960


@pytest.mark.parametrize(("threshold", "visited"), [(0.0, 6), (0.05, 5), (0.2, 4), (0.5, 3)])
def test_diff_pruning_stops_at_the_first_loss_under_the_threshold(threshold, visited):
    levels = [0.8, 1.0, 0.4, 0.1, 0.04, 0.9]  # 0.9 comes back, but nothing is visited after the stop
    seen = []

    def loss_at(model, timestep):
        seen.append(timestep)
        return levels[timestep] + (model.w - model.w.detach()).sum()  # gradient 1 at every timestep

    scores = diff_pruning(Scale(1.0), Probe(loss_at, num_train_timesteps=6, threshold=threshold))
    stopped = visited < 6
    assert seen == list(range(visited))
    assert scores["w"].item() == visited - stopped  # the loss that ended it is not summed


def test_diff_pruning_measures_the_threshold_from_the_largest_loss_so_far():
    levels = [0.03, 1.0, 0.06, 0.04]  # the first is below 5 % of the second, but nothing larger was seen yet
    loss_at = lambda model, t: levels[t] + (model.w - model.w.detach()).sum()  # noqa: E731
    assert diff_pruning(Scale(1.0), Probe(loss_at, 4))["w"].item() == 3


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_gradient_scores_agree_with_finite_differences(tiny, images, prediction_type):
    schedule = scheduler(4, prediction_type)
    scores = importance_scores("diff_pruning", tiny, UNET, x0=images, scheduler=schedule, seed=2, threshold=0)
    model = copy.deepcopy(tiny).eval()
    loss_at = denoising_loss(UNET, images, schedule, seed=2)

    def total():
        with torch.no_grad():
            return sum(loss_at(model, t).item() for t in range(4))

    for name in ("conv_in.weight", "mid_block.attentions.0.to_v.weight", "down_blocks.0.resnets.0.norm1.weight"):
        weight, score = model.get_parameter(name).data.view(-1), scores[name].view(-1)
        index = int(score.argmax())
        value, step = weight[index].item(), 1e-2
        weight[index] = value + step
        above = total()
        weight[index] = value - step
        below = total()
        weight[index] = value
        # float32 losses near 5 carry 1e-6, over steps of 2e-2; curvature is of the order of the step squared
        assert float(score[index]) == pytest.approx(abs(value * (above - below) / (2 * step)), rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_loss_compares_with_the_target_of_the_prediction_type(images, prediction_type):
    """A family whose prediction is always 0 leaves the mean square of the target."""

    class Zero(type(UNET)):
        def prediction(self, model, sample, timestep, **conditioning):
            assert timestep.tolist() == [3, 3, 3]
            return torch.zeros_like(sample)

    schedule = scheduler(5, prediction_type)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(7))
    alpha, sigma = schedule.alphas_cumprod[3] ** 0.5, (1 - schedule.alphas_cumprod[3]) ** 0.5
    target = {"epsilon": noise, "sample": images, "v_prediction": alpha * noise - sigma * images}[prediction_type]
    loss = denoising_loss(Zero(), images, schedule, seed=7)(Scale(1.0), 3)
    torch.testing.assert_close(loss, (target**2).mean())


def test_class_labels_reach_the_model(images):
    torch.manual_seed(0)
    model = UNet2DModel(
        **{"in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 2, "num_class_embeds": 3},
        **{"block_out_channels": (4,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)},
        attention_head_dim=4,
    )
    labels = {"class_labels": torch.tensor([2, 0, 2])}
    scores = importance_scores("taylor", model, UNET, x0=images, scheduler=scheduler(), conditioning=labels)
    used = scores["class_embedding.weight"].sum(1)
    assert used[0] > 0 and used[2] > 0 and used[1] == 0


def test_a_half_precision_teacher_is_scored_in_float32(tiny, images):
    half = UNet2DModel.from_config(dict(tiny.config))
    half.load_state_dict(tiny.state_dict())
    half.to(torch.bfloat16)
    scores = importance_scores("taylor", half, UNET, x0=images.bfloat16(), scheduler=scheduler())
    assert scores["conv_in.weight"].dtype == torch.float32
    assert half.dtype == torch.bfloat16


def test_refusals(tiny, images):
    with pytest.raises(BadInputError) as error:
        importance_scores("magnitud", tiny, UNET)
    assert "did you mean: magnitude" in error.value.hint
    with pytest.raises(BadInputError, match="needs clean images and a noise schedule"):
        importance_scores("taylor", tiny, UNET, x0=images)
    with pytest.raises(BadInputError, match="threshold must be in"):
        importance_scores("diff_pruning", tiny, UNET, x0=images, scheduler=scheduler(), threshold=1.0)
    with pytest.raises(BadInputError, match="needs calibration images"):
        taylor(Scale(1.0), Probe(num_train_timesteps=3))
    flow = scheduler()
    flow.register_to_config(prediction_type="flow")
    with pytest.raises(BadInputError, match="prediction type is not supported: flow"):
        importance_scores("taylor", tiny, UNET, x0=images, scheduler=flow)


def test_a_loss_that_is_not_finite_stops_with_its_timestep(tiny, images):
    with pytest.raises(StageFailedError, match="timestep 0: nan"):
        importance_scores("diff_pruning", tiny, UNET, x0=images * float("nan"), scheduler=scheduler())
