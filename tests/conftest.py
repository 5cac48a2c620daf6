"""What tests of whole stages share: a small untrained teacher on Fashion-MNIST, and a recipe of seconds for it."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image

from edgediff import model_folder
from edgediff.data import fashion_mnist
from edgediff.output import Output
from edgediff.recipe import Recipe, check

SMALL_UNET = {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@pytest.fixture(scope="session")
def small_teacher(tmp_path_factory) -> Path:
    """A pipeline folder of an untrained UNet2DModel for 28x28 grey images."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teachers") / "small"
    model_folder.save(folder, UNet2DModel(**SMALL_UNET), DDPMScheduler())
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """An image folder of 40 training and 40 test images of Fashion-MNIST: features of all of them take a second."""
    folder = tmp_path_factory.mktemp("photos")
    for split in ("train", "test"):
        images = fashion_mnist.load(split, fashion_mnist.packaged_folder())
        (folder / split).mkdir()
        for index in range(40):
            Image.fromarray(images.pixels[index, 0]).save(folder / split / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def small_recipe(small_teacher):
    """A function (section=dict, ...) → Recipe of a run that takes seconds."""

    def make(**sections) -> Recipe:
        values = {
            "teacher": str(small_teacher),
            "prune": {"ratio": 0.5},
            "distill": {"training": {"steps": 6, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 2}},
            "export": {"batch_sizes": [1, 3]},
            "benchmark": {"batch_sizes": [1, 2], "iterations": 3, "warmup_iterations": 1},
            "evaluate": {"num_images": 8, "num_inference_steps": 3, "batch_size": 4},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        return check(values, Recipe)

    return make


@pytest.fixture(scope="session")
def quiet() -> Output:
    """A voice that says nothing."""
    return Output("quiet")
