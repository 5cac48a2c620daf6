"""`diagnose`: closed forms of errors, fits and sharpness for models that are known, and the verb on small real ones."""

import io
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import nn

from edgediff import data, diagnostics, model_folder
from edgediff.artifacts import read_json, verify
from edgediff.diagnose import ROWS, SHOWN_IMAGES, SHOWN_TIMESTEPS, TIMESTEPS, coloured, diagnose, show
from edgediff.diagnostics.by_timestep import errors_by_timestep
from edgediff.diagnostics.held_out import HeldOut, held_out
from edgediff.diagnostics.sharpness import RHO, sharpness
from edgediff.diagnostics.tiles import Tiles, tiles
from edgediff.diffusion.parameterisation import convert
from edgediff.errors import BadInputError, StageFailedError
from edgediff.families.unet2d import UNet2D
from edgediff.model_folder import Loaded
from edgediff.output import Output
from edgediff.prune import prune
from edgediff.reporting import figures
from edgediff.results import Diagnosis
from edgediff.run import Run

AT = torch.tensor([0, 499, 999])
SCHEDULER = DDPMScheduler()


class Says(nn.Module):
    """A model that says `epsilon(x_t, t)`, in another prediction type where one is asked for."""

    def __init__(self, epsilon, prediction_type="epsilon"):
        super().__init__()
        self.epsilon, self.prediction_type = epsilon, prediction_type

    def forward(self, sample, timestep, return_dict=False):
        said = self.epsilon(sample, timestep)
        return (convert(said, sample, timestep, SCHEDULER, "epsilon", self.prediction_type),)


def loaded(epsilon, prediction_type="epsilon"):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    return Loaded(Says(epsilon, prediction_type), scheduler, UNet2D(), "")


def teacher_epsilon(sample, timestep):
    return torch.sin(3 * sample) + 0.2


@pytest.fixture(scope="module")
def images(small_recipe, photos):
    return data.load(small_recipe(data={"name": str(photos)}).data, "test", shape=(1, 28, 28))


def measured(images, students, *, batch_size=4, timesteps=AT, num_images=6):
    return errors_by_timestep(
        loaded(teacher_epsilon),
        students,
        images,
        timesteps=timesteps,
        num_images=num_images,
        batch_size=batch_size,
        advance=lambda count: None,
    )


def amplification(timesteps):
    alpha_bar = SCHEDULER.alphas_cumprod[timesteps].double()
    return ((1 - alpha_bar) / alpha_bar).sqrt().numpy()


def test_a_constant_error_of_epsilon_is_amplified_in_x0_as_the_sampler_does(images):
    found = measured(images, {"student": loaded(lambda *at: teacher_epsilon(*at) + 0.06)})["student"]
    assert [error.timestep for error in found] == AT.tolist()
    # Float32 throughout; at t = 999 x0 comes from a difference that is divided by 0.0064.
    np.testing.assert_allclose([error.mse for error in found], 0.06**2, rtol=1e-5)
    np.testing.assert_allclose([error.x0_rmse for error in found], 0.06 * amplification(AT), rtol=1e-4)
    assert found[-1].x0_rmse == pytest.approx(0.06 * 157, rel=0.01)


def test_the_fit_undoes_a_linear_student(images):
    found = measured(images, {"student": loaded(lambda *at: 2 * teacher_epsilon(*at) + 0.5)})["student"]
    for error in found:
        # The fit's 1e-7 beside variances of order 1, in float32.
        assert (error.slope, error.intercept) == (pytest.approx(0.5, abs=1e-5), pytest.approx(-0.25, abs=1e-5))
        assert error.slope_std < 1e-5 and error.intercept_std < 1e-5


def test_the_spread_of_the_fit_is_the_one_between_images(images):
    def sign_of_image(sample, timestep):
        return teacher_epsilon(sample, timestep) * torch.tensor([1.0, 0.5]).repeat(len(sample) // 2).view(-1, 1, 1, 1)

    error = measured(images, {"student": loaded(sign_of_image)}, batch_size=2)["student"][1]
    assert (error.slope, error.slope_std) == (pytest.approx(1.5, abs=1e-5), pytest.approx(0.5, abs=1e-5))


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_a_student_of_another_prediction_type_is_compared_exactly(images, prediction_type):
    twins = {
        "same": loaded(teacher_epsilon, prediction_type),
        "off": loaded(lambda *at: teacher_epsilon(*at) + 0.06, prediction_type),
        "epsilon": loaded(lambda *at: teacher_epsilon(*at) + 0.06),
    }
    found = measured(images, twins)
    for same, off, epsilon in zip(found["same"], found["off"], found["epsilon"], strict=True):
        # What float32 leaves of x0 where eps is divided by s = 0.01 (t = 0) or x0 by a = 0.0064 (t = 999).
        assert same.mse < 1e-8 and same.x0_rmse < 1e-4 and abs(same.slope - 1) < 1e-4
        assert off.mse == pytest.approx(epsilon.mse, rel=1e-3)
        assert off.x0_rmse == pytest.approx(epsilon.x0_rmse, rel=1e-3)


def test_the_batch_size_changes_nothing(images):
    student = {"student": loaded(lambda sample, timestep: torch.tanh(sample))}
    one, all_ = (measured(images, student, batch_size=size)["student"] for size in (1, 6))
    for a, b in zip(one, all_, strict=True):
        # Float64 means of float32 values that a batched kernel may round otherwise.
        np.testing.assert_allclose(list(a.model_dump().values()), list(b.model_dump().values()), rtol=1e-5, atol=1e-7)


def test_the_noise_of_an_image_follows_from_its_index(images):
    indices = torch.tensor([3, 7, 11])
    together = next(held_out(images, indices, 3))
    alone = torch.cat([batch.noise for batch in held_out(images, indices, 1)])
    assert torch.equal(together.noise, alone) and not torch.equal(alone[0], alone[1])


def test_a_model_that_predicts_nan_is_named_with_the_timestep(images):
    with pytest.raises(StageFailedError, match="the student predicts NaN or infinity at timestep 499"):
        measured(images, {"student": loaded(lambda sample, timestep: sample / (timestep[0] != 499))})


def test_tiles_show_the_noised_image_both_x0_and_the_error(images):
    (image,) = held_out(images, torch.tensor([0]), 1)
    student = loaded(lambda *at: teacher_epsilon(*at) + 0.5)
    found = tiles(loaded(teacher_epsilon), student, image, AT)
    assert found.noised.shape == found.student_x0.shape == (3, 1, 28, 28)
    np.testing.assert_allclose(found.squared_error, np.full((3, 28, 28), 0.25), rtol=1e-5)  # float32
    clean = ((image.x0 + 1) * 127.5).round().numpy()
    # At t = 0 the noise has a standard deviation of 0.01, 1.3 grey levels; six of them are never left.
    assert np.abs(found.noised[0] - clean[0]).max() <= 8
    assert (found.student_x0[2] != found.teacher_x0[2]).any()


def test_tiles_of_large_images_are_averaged_down():
    x0 = torch.rand(1, 3, 128, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = tiles(
        loaded(teacher_epsilon), loaded(lambda x, t: teacher_epsilon(x, t) + 0.5), HeldOut(x0, 0 * x0, {}), AT
    )
    assert found.noised.shape == (3, 3, 64, 48) and found.squared_error.shape == (3, 64, 48)
    averaged = x0.view(3, 64, 2, 48, 2).mean(dim=(2, 4)) * SCHEDULER.alphas_cumprod[0].sqrt()
    assert np.abs(found.noised[0] - ((averaged + 1) * 127.5).numpy()).max() <= 0.51  # rounding to bytes
    np.testing.assert_allclose(found.squared_error, 0.25, rtol=1e-5)  # float32


class Quadratic(nn.Module):
    """Two parameters, whose loss is half the sum of curvature times square."""

    def __init__(self, *at):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(float(value), dtype=torch.float64)) for value in at)
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def loss(self):
        return 0.5 * (4 * self.a**2 + 1 * self.b**2)


def test_sharpness_of_a_quadratic_is_its_gradient_norm_and_half_rho_of_its_curvature():
    model = Quadratic(1, 2)
    gradient = np.array([4.0, 2.0])
    along = gradient / np.linalg.norm(gradient)
    expected = np.linalg.norm(gradient) + RHO / 2 * (along * [4, 1] * along).sum()
    found = sharpness(model, [lambda moved: moved.loss() / 4, lambda moved: moved.loss() * 3 / 4])
    assert found.loss == pytest.approx(4) and found.gradient_norm == pytest.approx(np.linalg.norm(gradient))
    assert found.sharpness == pytest.approx(expected, rel=1e-12)  # float64, a difference of 0.2 beside 4
    assert (model.a.item(), model.b.item()) == (1, 2) and model.a.grad is None


def test_sharpness_at_a_minimum_is_zero():
    found = sharpness(Quadratic(0, 0), [lambda moved: moved.loss()])
    assert (found.loss, found.gradient_norm, found.sharpness) == (0, 0, 0)


@pytest.fixture(scope="module")
def recipe(small_recipe, photos):
    return small_recipe(data={"name": str(photos)}, evaluate={"batch_size": 40})


@pytest.fixture(scope="module")
def diagnosed(recipe, tmp_path_factory, quiet):
    """A run whose student predicts v: the pruned weights with another head, which stand for a training."""
    run = Run(tmp_path_factory.mktemp("runs") / "diagnosed")
    prune(run, recipe, quiet)
    student = model_folder.load(run.pruned)
    with torch.no_grad():
        student.model.conv_out.weight.mul_(0.5)
    scheduler = DDPMScheduler.from_config(student.scheduler.config, prediction_type="v_prediction")
    model_folder.save(run.student, student.model, scheduler)
    return run, diagnose(run, recipe, quiet)


def test_the_folder_is_whole_and_holds_what_was_returned(diagnosed):
    run, diagnosis = diagnosed
    folder = run.diagnosis
    assert verify(folder)["stage"] == "diagnose"
    assert Diagnosis.model_validate(read_json(folder / diagnostics.RESULT)) == diagnosis
    assert diagnosis.num_images == 8 and diagnosis.prediction_type == "epsilon"
    types = {role: model.prediction_type for role, model in diagnosis.models.items()}
    assert types == {"pruned": "epsilon", "student": "v_prediction"}
    for model in diagnosis.models.values():
        assert [model.errors[0].timestep, model.errors[-1].timestep] == [0, 999] and len(model.errors) == TIMESTEPS
        assert model.sharpness.gradient_norm > 0
        # One line: the x0 error is the prediction's, as the sampler amplifies it; float32 at both ends.
        rmse = [error.mse**0.5 for error in model.errors]
        factors = amplification(torch.tensor([error.timestep for error in model.errors]))
        np.testing.assert_allclose([error.x0_rmse for error in model.errors], rmse * factors, rtol=1e-2)


def test_pictures_are_a_column_a_timestep_and_a_row_each_of_noised_both_x0_and_error(diagnosed):
    run, diagnosis = diagnosed
    pictures = diagnosis.pictures
    assert len(pictures.files) == len(pictures.images) == SHOWN_IMAGES
    assert len(pictures.timesteps) == SHOWN_TIMESTEPS and len(pictures.rows) == len(ROWS) == 4
    assert 0 < pictures.low < pictures.high
    for file in pictures.files:
        content = (run.diagnosis / file).read_bytes()
        size = Image.open(io.BytesIO(content)).size
        assert size == (28 * SHOWN_TIMESTEPS + figures.GAP * (SHOWN_TIMESTEPS - 1), 28 * 4 + figures.GAP * 3)


def test_the_tables_fit_a_terminal_of_80_and_name_every_column(diagnosed, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show(diagnosed[1], Output())
    lines = [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert ["MSE ↓", "MSE ↓", "x0 RMSE ↓", "x0 RMSE ↓", "slope → 1", "intercept → 0"] in lines
    assert ["t", "pruned", "student", "pruned", "student", "student", "student"] in lines
    for before, after in zip(*(diagnosed[1].models[role].errors for role in ("pruned", "student")), strict=True):
        errors = [f"{value:.2g}" for value in (before.mse, after.mse, before.x0_rmse, after.x0_rmse)]
        assert [str(after.timestep), *errors, f"{after.slope:.3f}", f"{after.intercept:.3f}"] in lines


@pytest.mark.parametrize(("pixels", "places"), [(64, 64), (64, 32), (64, 48), (64, 36)])
def test_errors_of_latents_are_shown_at_the_size_of_their_images(pixels, places):
    """SD 2.1 at 768 pixels: images averaged down to 64, latents to 48."""
    picture = np.zeros((2, 3, pixels, pixels), np.uint8)
    error = np.zeros((2, places, places), np.float32)
    error[:, -1] = 1.0  # the lowest row of places ends in the lowest row of pixels, as wide as its share
    shown = coloured(Tiles(picture, picture, picture, error), 1e-3, 1.0)
    assert shown.shape == (8, 3, pixels, pixels)
    hot = (shown[6] != shown[6, :, :1, :1]).any(axis=(0, 2))
    assert hot.nonzero()[0].tolist() == list(range(pixels - hot.sum(), pixels))
    assert hot.sum() in (pixels // places, pixels // places + 1)


def test_a_second_call_changes_nothing_and_another_student_is_diagnosed_again(diagnosed, recipe, tmp_path, quiet):
    run = Run(tmp_path / "again")
    shutil.copytree(diagnosed[0].path, run.path)
    manifest = run.diagnosis / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert diagnose(run, recipe, quiet) == diagnosed[1]
    assert manifest.stat().st_mtime_ns == before
    shutil.rmtree(run.student)
    shutil.copytree(recipe.teacher, run.student)
    twin = diagnose(run, recipe, quiet).models["student"]
    assert manifest.stat().st_mtime_ns > before
    assert all((error.mse, error.x0_rmse) == (0, 0) for error in twin.errors)
    # 1e-7 in the fit's denominator, beside the variance of an untrained teacher's prediction.
    assert all(abs(error.slope - 1) < 1e-3 and abs(error.intercept) < 1e-3 for error in twin.errors)
    assert (twin.sharpness.loss, twin.sharpness.gradient_norm) == (0, 0)


def test_a_run_without_a_student_says_what_to_run(recipe, tmp_path, quiet):
    run = Run(tmp_path / "early")
    prune(run, recipe, quiet)
    with pytest.raises(BadInputError, match="student model is not there yet") as caught:
        diagnose(run, recipe, quiet)
    assert "edgediff distill" in caught.value.hint and not run.diagnosis.exists()
