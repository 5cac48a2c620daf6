"""Budgets through the command line, the stages and the report: what is refused, and what is recorded."""

import json
import shutil

import pytest
from budget_models import UNET, made_up_table

from edgediff import model_folder
from edgediff.artifacts import read_json, write_result
from edgediff.compare_prunings import compare_prunings
from edgediff.errors import BadInputError
from edgediff.plan import plan
from edgediff.prune import prune
from edgediff.recipe import PruneConfig, check
from edgediff.reporting import budgets, figures
from edgediff.results import BudgetCheck, Reached
from edgediff.run import Run


@pytest.fixture(scope="module")
def device(small_teacher, tmp_path_factory):
    """The file of a made-up device's profile of the small teacher, and what a step of the teacher takes there."""
    path = tmp_path_factory.mktemp("device") / "profile.json"
    table = made_up_table(UNET, dict(model_folder.load(small_teacher).model.config))
    write_result(path, table.model_dump(mode="json"), stage="profile", config={}, inputs={})
    return path, table.teacher_ms


@pytest.mark.parametrize(("text", "latency_ms"), [("30ms", 30), ("0.03s", 30), ("500 us", 0.5), (30, 30)], ids=str)
def test_latencies_are_read_with_their_unit(text, latency_ms):
    assert check({"latency_ms": text}, PruneConfig).latency_ms == pytest.approx(latency_ms)


@pytest.mark.parametrize(
    ("text", "memory_mb"), [("500MB", 500), ("0.5GB", 500), ("100 MiB", 104.8576), ("2GiB", 2147.483648)], ids=str
)
def test_sizes_are_read_with_their_unit(text, memory_mb):
    assert check({"memory_mb": text}, PruneConfig).memory_mb == pytest.approx(memory_mb)


BAD = {
    "no unit": (["--latency", "30"], ["prune.latency_ms", "a number with a unit (us, ms, s): 30"]),
    "another unit": (["--memory", "500ms"], ["prune.memory_mb", "MB"]),
    "nothing left": (["--latency", "0ms"], ["prune.latency_ms", "greater than 0"]),
    "no budget": (["--ratio", "0.5", "--device", "{profile}"], ["only asked for latency_ms and memory_mb"]),
    "ratio and budget": (["--ratio", "0.5", "--latency", "3ms"], ["exactly one of ratio, widths and budgets"]),
    "no profile": (["--latency", "3ms", "--device", "nowhere.json"], ["profile not found: `nowhere.json`"]),
    "unreachable": (["--latency", "1us", "--device", "{profile}"], ["takes 0.00 ms a step", "reachable: "]),
    "too little memory": (["--memory", "1MB", "--device", "{profile}"], ["needs 1.0 MB", "reachable: "]),
    "met already": (["--latency", "1s", "--device", "{profile}"], ["nothing to prune"]),
}


@pytest.mark.parametrize("command", ["prune", "compress"])
@pytest.mark.parametrize("name", BAD)
def test_bad_budgets_are_one_sentence_before_any_work(name, command, edgediff, small_teacher, device, tmp_path):
    options, said = BAD[name]
    options = [option.format(profile=device[0]) for option in options]
    code, out, err = edgediff(command, "--teacher", small_teacher, *options, "--out", tmp_path / "run")
    assert code == 2 and not out
    for words in said:
        assert words in " ".join(err.split())
    assert not (tmp_path / "run").exists()


def test_another_teachers_profile_is_refused(edgediff, device, tmp_path):
    arguments = ["--teacher", "fashion-ddpm", "--latency", "3ms", "--device", device[0], "--out", tmp_path / "run"]
    code, _, err = edgediff("prune", *arguments)
    assert code == 2 and "profile is of another teacher, made-up" in err


def test_a_plan_without_a_profile_says_how_to_get_one(edgediff, small_teacher, tmp_path):
    code, _, err = edgediff(
        "compress", "--teacher", small_teacher, "--latency", "3ms", "--dry-run", "--out", tmp_path / "run"
    )
    assert code == 2 and f"edgediff profile --teacher {small_teacher}" in " ".join(err.split())


def test_ways_of_pruning_are_compared_by_this_machines_profile(small_recipe, device, tmp_path, quiet):
    """The size is known before the images are looked for."""
    path, teacher_ms = device
    run, asked = Run(tmp_path / "run"), {"ratio": None, "latency_ms": 0.5 * teacher_ms}
    recipe = small_recipe(prune=asked, data={"name": "nowhere"})
    with pytest.raises(BadInputError, match="needs a profile"):
        compare_prunings(run, recipe, quiet)
    run.path.mkdir()
    shutil.copy(path, run.profile)
    with pytest.raises(BadInputError, match="no data set and no folder of images: nowhere"):
        compare_prunings(run, recipe, quiet)


def test_a_plan_shows_what_the_profile_predicts(small_recipe, device):
    path, teacher_ms = device
    asked = {"ratio": None, "latency_ms": 0.5 * teacher_ms, "device": str(path)}
    found = plan(small_recipe(prune=asked)).search
    assert found is not None and found.device == "device A"
    assert found.found.costs["latency_ms"] <= 0.5 * teacher_ms
    assert found.teacher["latency_ms"] == pytest.approx(teacher_ms, rel=0.01)


def test_pruning_within_budgets_records_what_was_found(small_recipe, device, tmp_path, quiet):
    path, teacher_ms = device
    asked = {"ratio": None, "latency_ms": 0.4 * teacher_ms, "params": 60_000, "device": str(path)}
    run = Run(tmp_path / "run")
    reached = prune(run, small_recipe(prune=asked), quiet)
    found = reached.search.found
    assert reached.requested == {"latency_ms": 0.4 * teacher_ms, "params": 60_000}
    assert found.costs["latency_ms"] <= 0.4 * teacher_ms
    assert found.costs["params"] == reached.params_after <= 60_000
    assert found.widths == reached.widths_after
    assert reached.search.passed[0].importance_kept == pytest.approx(1)
    manifest = read_json(run.pruned / "manifest.json")
    assert set(manifest["inputs"]) == {"teacher", "profile"}
    assert Reached.model_validate(manifest["reached"]) == reached
    assert prune(run, small_recipe(prune=asked), quiet) == reached


def test_a_removed_block_is_told(small_recipe, device, tmp_path, quiet):
    path, teacher_ms = device
    # Below the narrowest student of all blocks, above the narrowest of the fewest.
    reached = None
    for share in (0.3, 0.25, 0.22, 0.2, 0.18, 0.16):
        asked = {"ratio": None, "latency_ms": share * teacher_ms, "device": str(path)}
        reached = prune(Run(tmp_path / str(share)), small_recipe(prune=asked), quiet)
        if reached.blocks_removed:
            break
    assert reached.blocks_removed == ["mid_block"] and reached.blocks_by == "search"
    assert reached.kind == "depth- and width-pruned"
    model = model_folder.load(Run(tmp_path / str(share)).pruned).model
    assert model.config.mid_block_type is None


def searched(small_recipe, device, folder, quiet):
    path, teacher_ms = device
    asked = {"ratio": None, "latency_ms": 0.5 * teacher_ms, "device": str(path)}
    return prune(Run(folder / "run"), small_recipe(prune=asked), quiet).search


def test_predicted_and_measured_latency_compare_as_shares(small_recipe, device, tmp_path, quiet, a_report):
    search = searched(small_recipe, device, tmp_path, quiet)
    share = search.found.costs["latency_ms"] / search.teacher["latency_ms"]
    same = {"device": "device A", "threads": 1, "clock": "processor time"}
    busy = BudgetCheck(teacher_ms=80.0, student_ms=80 * share / 1.1, **same)
    found = budgets.comparison(search, a_report.latency.model_copy(update={"budget": busy}))
    assert found.latency_error == pytest.approx(0.1)
    elsewhere = BudgetCheck(teacher_ms=8.0, student_ms=4.0, **{**same, "device": "device B"})
    found = budgets.comparison(search, a_report.latency.model_copy(update={"budget": elsewhere}))
    assert found.latency_error is None and "measured on device B" in found.not_comparable
    assert budgets.comparison(search, a_report.latency) is None


def test_the_reports_rows_end_with_the_student(small_recipe, device, tmp_path, quiet):
    search = searched(small_recipe, device, tmp_path, quiet)
    shown = budgets.passed(search)
    assert len(shown["rows"]) <= budgets.ROWS + 1
    assert [row["found"] for row in shown["rows"]].count(True) == 1
    assert [row["name"] for row in budgets.rows(search)] == [budgets.NAMES[name] for name in search.found.costs]
    chart = figures.pareto(search, "latency_ms", "ms")
    assert b"importance kept" in chart.light and chart.light != chart.dark
    json.dumps(search.model_dump(mode="json"), allow_nan=False)
