"""What tests of encoding share: tiny teachers, coloured photographs, and an output that remembers."""

import socket
from contextlib import contextmanager

import numpy as np
import pytest
import small_pipelines
from PIL import Image

from edgediff import data
from edgediff.output import Output
from edgediff.recipe import DataConfig


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a local folder asks nobody")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """Pipeline folders by name, made when asked for and never changed."""
    root, made = tmp_path_factory.mktemp("teachers"), {}
    makers = {
        "sd": lambda folder: small_pipelines.stable_diffusion(folder),
        "other sd": lambda folder: small_pipelines.stable_diffusion(folder, seed=5),
        "sdxl": lambda folder: small_pipelines.stable_diffusion_xl(folder),
        "sd3": lambda folder: small_pipelines.stable_diffusion_3(folder),
        "sd3 without t5": lambda folder: small_pipelines.stable_diffusion_3(folder, with_t5=False),
    }

    def teacher(name):
        if name not in made:
            made[name] = makers[name](root / name)
        return made[name]

    return teacher


@pytest.fixture
def photos(tmp_path):
    """A folder of twenty training photographs of several sizes, and one for tests."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 1)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / split / f"{number:02}.png")
    return tmp_path / "photos"


@pytest.fixture
def load():
    """A function (folder) → its training images, as the tiny VAEs read them."""

    def images(folder, output=None, side=small_pipelines.RESOLUTION):
        return data.load(DataConfig(name=str(folder)), "train", shape=(3, side, side), output=output)

    return images


class Listening(Output):
    """Keeps what it is told, and how far progress of encoding was when it was shown and came from then on."""

    def __init__(self):
        super().__init__("quiet")
        self.said, self.shown, self.advanced = [], [], 0

    def say(self, text):
        self.said.append(text)

    @contextmanager
    def progress(self, what, total, done=0):
        if what == "hash images":  # which depends on how old the files are
            with super().progress(what, total, done) as unheard:
                yield unheard
            return
        self.shown.append((what, total, done))
        yield self

    def advance(self, count=1, note=""):
        self.advanced += count


@pytest.fixture
def output():
    return Listening()
