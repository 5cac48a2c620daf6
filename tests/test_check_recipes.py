"""`edgediff recipes check`: every recipe resolves offline, and printed sizes are met or their miss is explained."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from edgediff import check_recipes, recipe
from edgediff.check_recipes import printed
from edgediff.cli import app


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Return a function that makes one recipe, a changed copy of a packaged one, the only one there is."""

    def make(name, change):
        values = yaml.safe_load(recipe.find(name).read_text())
        change(values)
        path = Path(tmp_path / "changed.yaml")
        path.write_text(yaml.safe_dump(values))
        monkeypatch.setattr(check_recipes, "packaged", lambda: {"changed": (path, "")})

    return make


def checked():
    result = CliRunner().invoke(app, ["recipes", "check", "--json"])
    return result.exit_code, {row["name"]: row for row in json.loads(result.stdout)["recipes"]}


@pytest.mark.parametrize(
    ("count", "like", "words"),
    [
        (485_787_524, "485.8M", "485.8M"),
        (485_749_999, "485.8M", "485.7M"),
        (1_335_575, "1.3M", "1.3M"),
        (205_321_600_000, "205.3G", "205.3G"),
        (249_489, "249k", "249k"),
    ],
)
def test_counts_are_rounded_to_the_printed_digits(count, like, words):
    assert printed(count, like) == words


def test_every_recipe_that_comes_along_resolves_and_has_its_printed_size():
    code, verdicts = checked()
    assert code == 0
    assert set(verdicts) == set(recipe.packaged())
    equal = {name for name, row in verdicts.items() if row["status"] == "equal"}
    assert equal >= {"sd21-bk-base", "sd21-bk-small", "sd21-bk-tiny", "dit-d14", "dit-d7", "dit-d4", "ddpm-celeba-0.9"}
    assert all(row["evidence"] for name, row in verdicts.items() if row["counts"])


def test_a_size_that_is_not_the_printed_one_fails_unless_the_recipe_says_why(alone):
    alone("ddpm-celeba-0.5", lambda values: values["published"].update(params="19.8M"))
    code, verdicts = checked()
    assert code == 1 and verdicts["changed"]["status"] == "differs"
    assert {"of": "params", "student": "19.7M", "published": "19.8M"} in verdicts["changed"]["counts"]

    alone("ddpm-celeba-0.5", lambda values: values["published"].update(params="19.8M", differs="a reason"))
    code, verdicts = checked()
    assert code == 0 and verdicts["changed"]["status"] == "explained" and verdicts["changed"]["reason"] == "a reason"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.update(teacher="ddpm-celeba-46"), "ddpm-celeba-64"),
        (lambda values: values["prune"].update(ratio=0.999), "highest ratio that works"),
        (lambda values: values["prune"].update(rato=0.5), "ratio"),
        (lambda values: values.update(prune={"widths": [64, 128]}), "5 levels"),
        (lambda values: values.update(prune={"widths": [64, 64, 128, 128, 256]}), "must differ"),
        (lambda values: values["published"].update(params="many"), "published.params"),
    ],
)
def test_a_recipe_that_cannot_run_is_named_with_its_problem(alone, change, words):
    alone("ddpm-celeba-0.5", change)
    code, verdicts = checked()
    assert code == 1 and verdicts["changed"]["status"] == "invalid" and words in verdicts["changed"]["reason"]
