"""The classifier of real images, and the share of drawn ones that show what was asked for."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from edgediff import data
from edgediff.class_accuracy import Candidate, class_accuracy
from edgediff.data.conditioned import ClassLabels, Conditioned
from edgediff.data.images import to_bytes
from edgediff.errors import BadInputError
from edgediff.metrics.classifier import classifier
from edgediff.quality import Drawn
from edgediff.recipe import DataConfig, EvaluateConfig
from edgediff.reporting.tables import class_accuracy_table
from edgediff.samples import Samples

CONFIG = EvaluateConfig(num_images=300, guidance_scale=2.0, guidance_scales=(2.0,), num_class_images=300)


@pytest.fixture(scope="module", autouse=True)
def user_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def first(split, count):
    """The first images of the packaged subset."""
    images = data.load(DataConfig(name="fashion-mnist-20k"), split, shape=(1, 28, 28))
    return dataclasses.replace(
        images, pixels=images.pixels[:count], labels=images.labels[:count], sha256=f"{images.sha256} {count}"
    )


@pytest.fixture(scope="module")
def training():
    return first("train", 6000)


@pytest.fixture(scope="module")
def test():
    return first("test", 2000)


@pytest.fixture(scope="module")
def known(training, quiet):
    return classifier(training, quiet)


def test_it_tells_the_classes_of_real_images_that_it_has_not_seen(known, test):
    """A tenth of the full set: 84 % measured, and 87 % with 20,000 images; chance is 10 %."""
    assert 0.78 < known.accuracy_on(test) < 0.95


def test_shuffled_labels_are_told_by_chance(known, test):
    images, labels = test.batch(torch.arange(2000)), test.class_labels(torch.arange(2000))
    shuffled = labels[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    # Three standard errors of a tenth among 2,000.
    assert known.accuracy([images[:700], images[700:]], shuffled) == pytest.approx(0.1, abs=3 * np.sqrt(0.09 / 2000))


def test_it_is_trained_once_and_again_where_what_was_kept_is_damaged(known, training, user_cache, quiet):
    (kept,) = user_cache.rglob("*-classifier.safetensors")
    written = kept.stat().st_mtime_ns
    assert classifier(training, quiet).sha256 == known.sha256 and kept.stat().st_mtime_ns == written
    kept.write_bytes(b"torn")
    assert classifier(training, quiet).sha256 == known.sha256  # the same weights to the last bit


def asked(images):
    """What a class-conditional model is told: the labels of the images."""
    return Samples(
        Conditioned(images, ClassLabels.of(images)), lambda count: {"class_labels": torch.full((count,), 10)}
    )


def drawing(images, indices):
    """A candidate whose images are these real ones; none of it has to be drawn again."""
    pixels = to_bytes(images.batch(indices))
    return Candidate(None, None, Drawn(pixels, "none", 0.0, np.ones(len(pixels), dtype=bool)))


def test_who_draws_what_was_asked_does_as_real_images_and_who_does_not_stays_far_below(known, training, test, quiet):
    places = torch.arange(300)
    candidates = {"teacher": drawing(test, places), "student": drawing(test, places + 7)}
    found = class_accuracy(candidates, CONFIG, asked(test), test, training, quiet)
    by_role = {row.role: row.class_accuracy for row in found.rows}
    assert by_role["teacher"] == pytest.approx(found.real, abs=0.06)  # three standard errors of 300 images
    assert by_role["student"] < 0.2
    assert found.real == known.accuracy_on(test) and (found.num_images, found.num_real) == (300, 2000)


def test_the_first_seed_says_which_class_is_asked_for(training, test, quiet):
    later = CONFIG.model_copy(update={"first_seed": 7})
    found = class_accuracy({"student": drawing(test, torch.arange(300) + 7)}, later, asked(test), test, training, quiet)
    assert found.rows[0].class_accuracy > 0.7


def test_nothing_is_counted_where_nothing_is_asked_or_known(training, test, quiet):
    candidates = {"teacher": drawing(test, torch.arange(300))}
    untold = Samples(test, lambda count: {})
    assert class_accuracy(candidates, CONFIG, untold, test, training, quiet) is None
    without = CONFIG.model_copy(update={"guidance_scales": ()})
    assert class_accuracy(candidates, without, asked(test), test, training, quiet) is None


def test_captions_without_classes_give_nothing_to_count(training, photos, quiet):
    unlabelled = data.load(DataConfig(name=str(photos)), "test", shape=(1, 28, 28))
    candidates = {"teacher": drawing(training, torch.arange(300))}
    assert not unlabelled.has_classes and training.has_classes
    for test_set, training_set in ((unlabelled, training), (training, unlabelled)):
        assert class_accuracy(candidates, CONFIG, asked(training), test_set, training_set, quiet) is None


def test_classes_that_cannot_be_read_are_not_taken_for_none(training, photos, tmp_path, quiet):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "test" / "metadata.csv").write_text("file_name,label\n00.png,dress\n")
    damaged = data.load(DataConfig(name=str(tmp_path / "photos")), "test", shape=(1, 28, 28))
    with pytest.raises(BadInputError, match="class label is no number"):
        class_accuracy({}, CONFIG, asked(training), damaged, training, quiet)


def test_a_mistake_of_the_classifier_is_not_taken_for_data_without_classes(training, test, quiet, monkeypatch):
    def refuses(images, output):
        raise BadInputError("images are of another shape")

    monkeypatch.setattr("edgediff.class_accuracy.classifier", refuses)
    with pytest.raises(BadInputError, match="another shape"):
        class_accuracy({}, CONFIG, asked(test), test, training, quiet)


def test_images_without_classes_are_refused_by_the_classifier(photos, quiet):
    images = data.load(DataConfig(name=str(photos)), "train", shape=(1, 28, 28))
    with pytest.raises(BadInputError, match="class"):
        classifier(images, quiet)


def test_the_table_has_a_column_a_scale_and_a_row_a_model(training, test, a_report, quiet):
    candidates = {"teacher": drawing(test, torch.arange(300)), "student": drawing(test, torch.arange(300) + 7)}
    found = class_accuracy(candidates, CONFIG, asked(test), test, training, quiet)
    quality = a_report.quality.model_copy(update={"class_accuracy": found})
    heading, real, *rows = class_accuracy_table(quality)
    assert heading == ["", "guidance 2"] and real[0] == "real images"
    assert [row[0] for row in rows] == ["teacher", "student"] and rows[0][1].endswith("%")
    assert class_accuracy_table(a_report.quality) == []
