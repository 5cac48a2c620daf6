"""The verb `generate`: a teacher's images as a data set, resumable, for data-free distillation."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image

from edgediff import data, model_folder
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.diffusion.sampler import ddim, sample
from edgediff.distill import distill
from edgediff.errors import BadInputError
from edgediff.generate import generate
from edgediff.prune import prune
from edgediff.recipe import DataConfig, EvaluateConfig
from edgediff.run import Run

CONFIG = EvaluateConfig(num_images=5, num_inference_steps=3, batch_size=2)


def files(folder):
    return sorted((folder / "train").iterdir())


def test_images_are_the_teachers_of_their_seeds(small_teacher, quiet, tmp_path):
    out = generate(str(small_teacher), tmp_path / "images", CONFIG, quiet)
    assert [file.name for file in files(out)] == [f"{seed:08}.png" for seed in range(5)]
    loaded = model_folder.load(small_teacher)
    scheduler = ddim(loaded.scheduler.config, clip_sample=True)
    denoiser = PyTorchDenoiser(loaded.model, loaded.family)
    drawn = sample(denoiser, scheduler, [3], shape=(1, 28, 28), num_inference_steps=3, batch_size=1)
    expected = ((drawn[0, 0].clamp(-1, 1) + 1) * 127.5).round().numpy()
    # A pixel at the border of two bytes may fall on either side with another batch size.
    assert np.abs(np.asarray(Image.open(files(out)[3])).astype(float) - expected).max() <= 1


def test_an_interrupted_folder_is_completed(small_teacher, quiet, tmp_path):
    out = generate(str(small_teacher), tmp_path / "images", CONFIG, quiet)
    before = {file.name: file.stat().st_mtime_ns for file in files(out)}
    files(out)[1].unlink()
    generate(str(small_teacher), out, CONFIG.model_copy(update={"num_images": 6}), quiet)
    after = {file.name: file.stat().st_mtime_ns for file in files(out)}
    assert len(after) == 6
    assert {name for name in after if before.get(name) != after[name]} == {"00000001.png", "00000005.png"}


def test_other_settings_need_another_folder(small_teacher, quiet, tmp_path):
    out = generate(str(small_teacher), tmp_path / "images", CONFIG, quiet)
    with pytest.raises(BadInputError, match="images of other settings"):
        generate(str(small_teacher), out, CONFIG.model_copy(update={"num_inference_steps": 4}), quiet)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(BadInputError, match="holds other files"):
        generate(str(small_teacher), tmp_path / "mine", CONFIG, quiet)


def test_latents_are_no_images(quiet, tmp_path):
    model = UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    model_folder.save(tmp_path / "latent", model, DDPMScheduler())
    with pytest.raises(BadInputError, match="4 channels, so they are no images"):
        generate(str(tmp_path / "latent"), tmp_path / "images", CONFIG, quiet)


def test_distilling_without_a_data_set(small_teacher, small_recipe, quiet, tmp_path):
    out = generate(str(small_teacher), tmp_path / "images", CONFIG, quiet)
    images = data.load(DataConfig(name=str(out)), "train", shape=(1, 28, 28))
    assert len(images) >= 1 and torch.isfinite(images.batch(torch.tensor([0]))).all()
    run, recipe = Run(tmp_path / "run"), small_recipe(data={"name": str(out)}, distill={"diffusion_weight": 0})
    prune(run, recipe, quiet)
    assert distill(run, recipe, quiet).steps == 6
