"""What a model needs to know of its images is looked for before any work: in all of them, not in the first."""

import numpy as np
import pytest
import small_pipelines
from PIL import Image

from edgediff import model_folder, samples, teacher
from edgediff.errors import BadInputError
from edgediff.recipe import DataConfig


@pytest.fixture
def folder_of(tmp_path):
    """A function (names) → a folder with pictures of these names in each split."""

    def make(*names):
        for split in ("train", "test"):
            for name in names:
                path = tmp_path / "images" / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.zeros((28, 28), np.uint8)).save(path)
        return tmp_path / "images"

    return make


def test_classes_that_the_model_does_not_know_are_refused(folder_of, tmp_path, quiet):
    of_ten = model_folder.load(teacher.resolve("fashion-dit").folder)
    known = DataConfig(name=str(folder_of(*(f"{index:02}/a.png" for index in range(10)))))
    samples.check(known, of_ten, quiet)
    more = DataConfig(name=str(folder_of("10/a.png", "11/a.png")))
    for look in (samples.check, lambda *asked: samples.learned(asked[0], "train", asked[1], tmp_path, asked[2])):
        with pytest.raises(BadInputError, match=r"classes 0 to 9, and 2 of 12 images of .* are of others, such as 10"):
            look(more, of_ten, quiet)


def test_a_caption_missing_anywhere_is_found_before_any_work(folder_of, tmp_path, quiet):
    of_captions = model_folder.load(small_pipelines.stable_diffusion(tmp_path / "teacher"))
    folder = folder_of("1.png", "2.png", "3.png", "4.png")
    for split in ("train", "test"):
        for name in ("1", "2", "3", "4"):
            (folder / split / f"{name}.txt").write_text("a")
    config = DataConfig(name=str(folder))
    samples.check(config, of_captions, quiet)
    (folder / "test" / "3.txt").unlink()
    with pytest.raises(BadInputError, match=r"captions are missing for 1 of 4 images, such as .*3\.png"):
        samples.check(config, of_captions, quiet)


def test_too_few_images_to_score_by_are_found_before_any_work(folder_of, small_teacher, quiet):
    folder, loaded = folder_of("1.png", "2.png", "3.png", "4.png"), model_folder.load(small_teacher)
    samples.check(DataConfig(name=str(folder)), loaded, quiet)
    (folder / "test" / "1.png").unlink()
    with pytest.raises(BadInputError, match="too few images to score by, 3 in the test split of"):
        samples.check(DataConfig(name=str(folder)), loaded, quiet)
