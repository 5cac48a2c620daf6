"""What tests of data sources share: pictures that say which they are, and a cache that is nobody's."""

import io

import numpy as np
import pytest
from PIL import Image

from edgediff.output import Output


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch):
    """The user's cache folder, empty and of this test alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def picture():
    """A function → a picture that is all one grey level, encoded; sizes differ from level to level."""

    def encoded(level, kind="PNG"):
        file = io.BytesIO()
        Image.fromarray(np.full((5 + level % 3, 5 + level % 4), level, dtype=np.uint8)).save(file, kind)
        return file.getvalue()

    return encoded


@pytest.fixture
def levels():
    """A function → the grey levels of a batch of such pictures, exactly."""

    def of(batch):
        assert (batch == batch[:, :, :1, :1]).all()
        return ((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()

    return of


class Listening(Output):
    """Keeps what it is told, and which progress was shown."""

    def __init__(self):
        super().__init__("quiet")
        self.said, self.shown = [], []

    def say(self, text):
        self.said.append(text)

    def progress(self, what, total, done=0):
        self.shown.append((what, total))
        return super().progress(what, total, done)


@pytest.fixture
def output():
    return Listening()
