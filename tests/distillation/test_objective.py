"""The objective of a distillation: what is compared with what, in which space, with which weight."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.models.resnet import ResnetBlock2D
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss

from edgediff import data, families, model_folder
from edgediff.diffusion.weighting import timestep_weights
from edgediff.distillation.normalisation import TimestepNormalisation
from edgediff.distillation.objective import Distillation
from edgediff.distillation.targets import LiveTeacher, Targets, TaughtBatch, TaughtBatches, feature_points
from edgediff.errors import BadInputError
from edgediff.families import Family
from edgediff.families.unet2d import UNet2D
from edgediff.pruning import prune_depth, published_cut, widths_for_ratio
from edgediff.recipe import KD_LOSSES, PREDICTION_LOSSES, DataConfig, DistillConfig, TrainingConfig
from edgediff.samples import Samples
from edgediff.training.batches import NoisedBatch, Noising


@pytest.fixture(scope="module")
def teacher(small_teacher):
    return model_folder.load(small_teacher)


@pytest.fixture(scope="module")
def student_of(teacher):
    """A function → a fresh pruned student, of the given prediction type."""

    def make(prediction_type="epsilon"):
        config = teacher.family.student_config(
            teacher.model.config, widths_for_ratio(teacher.family, teacher.model.config, 0.5)
        )
        torch.manual_seed(1)
        scheduler = DDPMScheduler.from_config(teacher.scheduler.config, prediction_type=prediction_type)
        return replace(teacher, model=teacher.family.build(config), scheduler=scheduler)

    return make


@pytest.fixture(scope="module")
def batch_of(teacher):
    """A function config → its batch of 6 samples."""
    images = data.load(DataConfig(name="fashion-mnist-20k"), "train", shape=(1, 28, 28))

    def make(config, step=0):
        noising = Noising(
            Samples(images, lambda count: {}), teacher.scheduler, DataConfig(), seed=0, device=torch.device("cpu")
        )
        points = feature_points(config, [(teacher.family, teacher.model.config)])
        live = LiveTeacher([teacher], points) if config.kd else None
        return TaughtBatches(noising, live)(step, torch.arange(6))

    return make


@pytest.mark.parametrize("name", KD_LOSSES)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_loss_trains_every_kind_of_student(name, prediction_type, teacher, student_of, batch_of):
    config = DistillConfig(kd=name, diffusion_weight=0 if name in PREDICTION_LOSSES and name != "dist" else 1)
    objective = Distillation(student_of(prediction_type), [teacher], config)
    loss, quantities = objective(batch_of(config))
    loss.backward()
    of_data = quantities.get("diffusion", 0)
    assert loss.item() == pytest.approx(float(quantities[name] + of_data), rel=1e-5) and loss.item() > 0
    gradients = [p.grad for p in objective.student.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


def test_terms_add_up_with_their_weights(teacher, student_of, batch_of):
    config = DistillConfig(kd="output=0.5,feature=2,place", diffusion_weight=3)
    student = student_of()
    loss, values = Distillation(student, [teacher], config)(batch_of(config))
    assert loss.item() == pytest.approx(
        sum(values[name].item() for name in ("diffusion", "output", "feature", "place"))
    )
    batch = batch_of(config)
    with torch.no_grad():
        prediction = student.model(batch.sample, batch.timestep).sample
    assert values["diffusion"].item() == pytest.approx(3 * mse_loss(prediction, batch.noise).item(), rel=1e-4)
    assert values["output"].item() == pytest.approx(
        0.5 * mse_loss(prediction, batch.targets.prediction).item(), rel=1e-4
    )


def cut_by_fsdp(teacher, batch, config, folder):
    """In a process of its own: leave the loss, and what was logged, of a student whose blocks stay whole once met."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
    student = replace(teacher, model=copy.deepcopy(teacher.model))
    objective = Distillation(student, [teacher], config)
    for module in list(student.model.modules()):
        if isinstance(module, ResnetBlock2D):
            fully_shard(module, mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=False)
    fully_shard(objective, mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=False)
    loss, values = objective(batch)
    loss.backward()
    torch.save({"loss": loss.detach(), "names": list(values)}, f"{folder}/said.pt")
    distributed.destroy_process_group()


def test_a_student_cut_by_fsdp_trains_without_norms_of_single_terms(teacher, batch_of, tmp_path):
    config = DistillConfig(kd="place", gradient_norms_every=1)
    batch = batch_of(config)
    process = multiprocessing.get_context("spawn").Process(
        target=cut_by_fsdp, args=(teacher, batch, config, str(tmp_path))
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    said = torch.load(tmp_path / "said.pt")
    whole, values = Distillation(replace(teacher, model=copy.deepcopy(teacher.model)), [teacher], config)(batch)
    torch.testing.assert_close(said["loss"], whole.detach())
    assert set(values) - set(said["names"]) == {"grad_norm.diffusion", "grad_norm.place"}


def test_the_teacher_itself_is_a_perfect_student(teacher, batch_of):
    """The same weights: no distillation error, slope 1, intercept 0, full fine weight."""
    config = DistillConfig(kd="place")
    _, values = Distillation(teacher, [teacher], config)(batch_of(config))
    assert values["place"] == pytest.approx(0, abs=1e-3)
    assert values["slope"] == pytest.approx(1, abs=1e-3)
    assert values["intercept"] == pytest.approx(0, abs=1e-3)
    assert values["fine_weight"] == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(("own", "space"), [("epsilon", "v_prediction"), ("v_prediction", "sample")])
def test_predictions_are_compared_in_the_asked_space(own, space, teacher, student_of, batch_of):
    """A squared error in another space is the one in the own space times the ratio of their factors."""
    student = student_of(own)
    plain, moved = (
        DistillConfig(kd="output", diffusion_weight=0, kd_space=kd_space, x0_threshold="none")
        for kd_space in (own, space)
    )
    batch = batch_of(plain)
    of_own, of_space = (timestep_weights("min_snr", teacher.scheduler, batch.timestep, kind) for kind in (own, space))
    factor = of_space / of_own  # a weight is the inverse of its space's scale
    one = Distillation(student, [teacher], plain)
    losses = {}
    for config in (plain, moved):
        objective = Distillation(student, [teacher], config)
        rows = []
        for row in range(6):
            fields = {k: v[row : row + 1] if isinstance(v, torch.Tensor) else v for k, v in vars(batch).items()}
            fields["targets"] = replace(batch.targets, prediction=batch.targets.prediction[row : row + 1])
            rows.append(objective(type(batch)(**fields))[0].item())
        losses[config.kd_space] = torch.tensor(rows)
    assert one.space == own
    torch.testing.assert_close(losses[own], losses[space] * factor, rtol=5e-3, atol=1e-7)


@pytest.mark.parametrize("kd", ["place", "lift"])
@pytest.mark.parametrize(
    ("fine_weight", "expected"),
    [("adaptive", None), ("fixed", 1.0), ("linear", 0.25), ("cosine", 0.1464), ("learnable", 1.0)],
)
def test_the_fine_weight_follows_its_rule(kd, fine_weight, expected, teacher, student_of, batch_of):
    """A quarter of the way: (1 - cos(pi / 4)) / 2 = 0.1464; a learnable one starts at 1 and has a gradient."""
    config = DistillConfig(kd=kd, diffusion_weight=0, place={"fine_weight": fine_weight}, training={"steps": 100})
    objective = Distillation(student_of(), [teacher], config)
    loss, values = objective(batch_of(config, step=25))
    if expected is None:
        assert 0 <= values["fine_weight"] <= 1
    else:
        assert values["fine_weight"] == pytest.approx(expected, abs=1e-4)
    assert loss.item() == pytest.approx((values["coarse"] + values["fine_weight"] * values["fine"]).item(), rel=1e-4)
    loss.backward()
    if fine_weight == "learnable":
        assert all(parameter.grad is not None for parameter in objective.fine_weight.parameters())


def test_min_snr_weighs_every_sample(teacher, student_of, batch_of):
    config = DistillConfig(kd="none", timestep_weighting="min_snr")
    student = student_of()
    batch = batch_of(config)
    loss, _ = Distillation(student, [teacher], config)(batch)
    with torch.no_grad():
        error = (student.model(batch.sample, batch.timestep).sample - batch.noise).square().flatten(1).mean(1)
    weights = timestep_weights("min_snr", student.scheduler, batch.timestep, "epsilon")
    assert loss.item() == pytest.approx((weights * error).mean().item(), rel=1e-4)


@pytest.mark.parametrize("kd", ["dist", "feature", "attention"])
@pytest.mark.parametrize("own", ["epsilon", "v_prediction"])
def test_losses_without_a_scale_are_weighed_alike_whatever_the_student_predicts(own, kd, teacher, student_of, batch_of):
    plain, weighed = (
        DistillConfig(kd=kd, timestep_weighting=kind).model_copy(update={"diffusion_weight": 0})
        for kind in ("uniform", "snr_truncated")
    )
    student = student_of(own)
    torch.manual_seed(0)
    objective = Distillation(student, [teacher], plain)
    batch = batch_of(plain)
    for row in range(6):
        fields = {k: v[row : row + 1] if isinstance(v, torch.Tensor) else v for k, v in vars(batch).items()}
        features = tuple(map_[row : row + 1] for map_ in batch.targets.features)
        fields["targets"] = Targets(batch.targets.prediction[row : row + 1], features)
        alone = type(batch)(**fields)
        losses = []
        for config in (plain, weighed):
            objective.config = config
            losses.append(objective(alone)[0].item())
        factor = timestep_weights("snr_truncated", student.scheduler, alone.timestep, "v_prediction").item()
        assert losses[1] == pytest.approx(factor * losses[0], rel=1e-5)


def test_normalised_losses_have_mean_one():
    normalisation = TimestepNormalisation(1000)
    timestep = torch.arange(1000)
    hard = 1 + timestep / 10.0
    first = normalisation(hard, timestep)
    assert first.view(20, 50).mean(1).tolist() == pytest.approx([1.0] * 20, rel=1e-4)
    for _ in range(3):
        again = normalisation(2 * hard, timestep)
    assert 1.9 < float(again.mean()) < 2  # the running mean follows slowly
    normalisation.eval()
    before = normalisation.mean.clone()
    normalisation(5 * hard, timestep)
    assert torch.equal(before, normalisation.mean)


def test_every_timestep_of_flow_matching_has_its_mean(teacher):
    """Its timesteps count from 1 to 1,000."""
    config = DistillConfig(kd="output", timestep_weighting="normalised", diffusion_weight=0)
    flow = replace(teacher, scheduler=FlowMatchEulerDiscreteScheduler())
    objective = Distillation(flow, [flow], config).train()
    samples = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([1, 50, 51, 1000])
    loss, _ = objective(TaughtBatch(0, samples, timestep, samples, samples, {}, targets=Targets(-samples)))
    assert loss.item() == pytest.approx(1, rel=1e-3)
    assert (objective.normalisation.mean > 0).nonzero().flatten().tolist() == [0, 1, 19]


@pytest.mark.parametrize("kd", ["output,place", "place,output"])
def test_the_logged_fit_is_that_of_the_loss_that_fits(kd, teacher, student_of, batch_of):
    student, config = student_of(), DistillConfig(kd=kd)
    _, values = Distillation(student, [teacher], config)(batch_of(config))
    _, alone = Distillation(student, [teacher], DistillConfig(kd="place"))(batch_of(config))
    assert {name: values[name] for name in ("coarse", "fine", "fine_weight", "slope")} == {
        name: alone[name] for name in ("coarse", "fine", "fine_weight", "slope")
    }


def test_x0_is_no_example_of_an_exchanged_condition(teacher, student_of, batch_of):
    config, exchanged = (
        DistillConfig(kd="output", gradient_norms_every=0),
        torch.tensor([True, False, False, True, False, False]),
    )
    objective, batch = Distillation(student_of(), [teacher], config), batch_of(config)
    with torch.no_grad():
        error = (objective.student(batch.sample, batch.timestep).sample - batch.noise).square().flatten(1).mean(1)
        _, values = objective(replace(batch, exchanged=exchanged))
        _, whole = objective(batch)
    assert values["diffusion"].item() == pytest.approx((error * ~exchanged).mean().item(), rel=1e-4)
    assert values["output"] == whole["output"]


def test_latents_have_no_range_to_hold_the_teacher_to(teacher, student_of, batch_of, tmp_path):
    """An exact teacher of values beyond [-1, 1]: what a v student should say is exact too."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    config = DistillConfig(kd="output", diffusion_weight=0)
    batch = batch_of(config)
    x0 = 4 * batch.x0
    sample = teacher.scheduler.add_noise(x0, batch.noise, batch.timestep)
    batch = replace(batch, x0=x0, sample=sample, targets=Targets(batch.noise))
    student = student_of("v_prediction")
    velocity = student.scheduler.get_velocity(x0, batch.noise, batch.timestep)
    with torch.no_grad():
        exact = mse_loss(student.model(sample, batch.timestep).sample, velocity).item()
    in_latents = replace(teacher, folder=tmp_path)
    assert Distillation(student, [in_latents], config)(batch)[0].item() == pytest.approx(exact, rel=1e-3)
    assert Distillation(student, [teacher], config)(batch)[0].item() != pytest.approx(exact, rel=0.05)


def test_gradient_norms_are_those_of_each_term(teacher, student_of, batch_of):
    config = DistillConfig(kd="output", gradient_norms_every=2)
    objective = Distillation(student_of(), [teacher], config).train()
    _, values = objective(batch_of(config, step=2))
    assert "grad_norm.diffusion" not in objective(batch_of(config, step=1))[1]
    halves = config.model_copy(update={"training": TrainingConfig(precision="fp16")})  # in which they vanish
    assert "grad_norm.diffusion" not in Distillation(student_of(), [teacher], halves).train()(batch_of(config, 2))[1]
    for name, only in (("diffusion", {"kd": "none"}), ("output", {"diffusion_weight": 0})):
        alone = Distillation(student_of(), [teacher], DistillConfig(**{"kd": "output", **only}))
        loss, _ = alone(batch_of(config, step=2))
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in alone.student.parameters() if p.grad is not None])
        assert values[f"grad_norm.{name}"].item() == pytest.approx(norm.item(), rel=1e-3)


def test_a_family_without_feature_points_refuses_feature_losses(teacher, student_of):
    class Plain(UNet2D):
        name = "plain"

        def feature_points(self, config, compared):
            return Family.feature_points(self, config, compared)

    pointless = replace(student_of(), family=Plain())
    with pytest.raises(BadInputError, match="plain gives no feature points"):
        Distillation(pointless, [replace(teacher, family=Plain())], DistillConfig(kd="feature"))


def test_a_student_of_fewer_levels_learns_the_features_that_it_has():
    """BK-SDM-Tiny's objective (task, output and features) on its cut of a small U-Net of Stable Diffusion's depth."""
    family = families.FAMILIES["UNet2DConditionModel"]
    torch.manual_seed(0)
    model = family.build(
        {
            **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 2, "attention_head_dim": 2},
            **{"block_out_channels": (4, 4, 8, 8), "cross_attention_dim": 6, "layers_per_block": 2},
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        }
    )
    big = model_folder.Loaded(model.eval(), DDPMScheduler(), family, "")
    tiny, _ = prune_depth(model, family, published_cut(family, model.config, "bk_tiny"))
    config = DistillConfig(kd="bk_sdm", reduction="mean")
    objective = Distillation(replace(big, model=tiny.train()), [big], config)
    ours, theirs = feature_points(config, [(family, tiny.config), (family, model.config)])
    assert len(ours) == len(theirs) == len(objective.adapters.points) == 6
    told = family.example_inputs(model.config, 3)
    sample, timestep = told.pop("sample"), told.pop("timestep")
    batch = NoisedBatch(0, sample, timestep, torch.zeros_like(sample), sample, told)
    targets = LiveTeacher([big], [theirs])(torch.arange(3), batch)
    loss, values = objective(TaughtBatch(**vars(batch), targets=targets))
    loss.backward()
    assert set(values) >= {"diffusion", "output", "feature"} and values["feature"].item() > 0
    assert all(parameter.grad.isfinite().all() for parameter in tiny.parameters())


def test_teachers_of_another_family_have_no_common_features(teacher):
    other = (families.FAMILIES["DiTTransformer2DModel"], {})
    with pytest.raises(BadInputError, match="teachers of the student's family: unet2d, teacher: dit"):
        feature_points(DistillConfig(kd="feature"), [(teacher.family, teacher.model.config), other])


def test_pruned_and_teacher_features_have_the_same_sizes(teacher, student_of):
    sizes = []
    for loaded in (teacher, student_of()):
        config = loaded.model.config
        points, inputs = loaded.family.feature_points(config, [config]), loaded.family.example_inputs(config)
        with torch.no_grad():
            prediction, maps = loaded.family.prediction_and_features(loaded.model, points, **inputs)
        assert torch.equal(prediction, loaded.model(**inputs).sample)
        assert tuple(map_.shape[1] for map_ in maps) == loaded.family.feature_widths(config, points)
        sizes.append([tuple(map_.shape[2:]) for map_ in maps])
    assert sizes[0] == sizes[1] and len(sizes[0]) == 5
