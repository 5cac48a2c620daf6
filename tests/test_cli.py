"""The command line as users meet it: fast help, one sentence for every mistake, exit codes, nothing half-written."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from edgediff.artifacts import write_json
from edgediff.run import Run


def test_help_imports_nothing_heavy():
    script = (
        "import sys; sys.argv = ['edgediff', '--help']\n"
        "from edgediff.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'diffusers', 'numpy', 'onnx', 'pydantic') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "compress" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_has_help(edgediff):
    _, out, _ = edgediff("--help")
    for command in ["compress", "prune", "distill", "export", "build", "bench", "eval", "report", "check", "doctor"]:
        assert command in out
        code, text, _ = edgediff(command, "--help")
        assert code == 0 and "Usage" in text


MISTYPED = {
    "an option": (["compress", "--rato", "0.9"], "no such option: --rato", "--ratio", "edgediff compress --help"),
    "a command": (["compres"], "no such command 'compres'", "compress", "edgediff --help"),
    "a value": (["compress", "--ratio", "half"], "invalid value for '--ratio'", "number", "edgediff compress --help"),
    "nothing": (["teacher", "train"], "missing argument 'RECIPE'", "RECIPE", "edgediff teacher train --help"),
}


@pytest.mark.parametrize("name", MISTYPED)
def test_a_mistyped_command_line_is_worded_as_all_other_mistakes(name, edgediff):
    arguments, said, meant, hint = MISTYPED[name]
    code, out, err = edgediff(*arguments)
    assert code == 2 and out == ""
    assert err.startswith(f"error: {said}") and meant in err and f"hint: `{hint}`" in err
    assert err.count("\n") == 2


def test_a_mistyped_option_is_data_for_machines(edgediff):
    code, out, _ = edgediff("report", "runs/x", "--json", "--jsn")
    said = json.loads(out)
    assert code == said["exit_code"] == 2
    assert "--jsn" in said["error"] and "--help" in said["hint"]


def test_no_command_shows_what_there_is(edgediff):
    code, out, err = edgediff()
    assert code == 2 and "compress" in out and "error" not in err


def test_version(edgediff):
    from edgediff import __version__

    assert edgediff("--version")[:2] == (0, f"edgediff {__version__}\n")


BAD = {
    "unknown teacher": (["--teacher", "fashion-dpm"], ["unknown teacher: fashion-dpm", "pipeline folder"]),
    "ratio above 1": (["--ratio", "1.5"], ["prune.ratio"]),
    "negative ratio": (["--ratio", "-0.5"], ["prune.ratio"]),
    "no channels left": (["--ratio", "0.99"], ["down_blocks.0"]),
    "unknown kd": (["--kd", "plaice"], ["distill.kd", "unknown loss plaice", "did you mean: place"]),
    "unknown kd of several": (["--kd", "output,featrue=0.1"], ["unknown loss featrue", "did you mean: feature"]),
    "negative weight": (["--kd", "place=-1"], ["the weight of place must be a number above 0: -1"]),
    "two weights": (["--kd", "place,place=2"], ["place is given twice"]),
    "unknown teacher of several": (["distill.teachers=[nobody]"], ["unknown teacher: nobody"]),
    "a teacher of other samples": (["distill.teachers=[fashion-dit]"], ["work on other samples: (4, 7, 7)"]),
    "nothing to exchange": (
        ["data.random_conditioning=0.5"],
        ["random_conditioning: the teacher is told nothing"],
    ),
    "nothing to drop": (["data.conditioning_dropout=0.1"], ["conditioning_dropout: the teacher is told nothing"]),
    "fp16 without a GPU": (["distill.training.precision=fp16"], ["fp16 trains on NVIDIA GPUs only"]),
    "nothing to learn": (["--kd", "none", "distill.diffusion_weight=0"], ["nothing to learn from"]),
    "no number of targets": (["--cache-targets", "64q"], ["distill.cache.targets: needs a number such as", ": 64q"]),
    "two targets": (["--ratio", "0.5", "--params", "100k"], ["exactly one"]),
    "unreachable size": (["--params", "3"], ["no student of this teacher has 3", "reachable"]),
    "unknown key": (["distil.kd=lift"], ["distil: unknown key, did you mean: distill"]),
    "several errors": (["distil.kd=lift", "prune.ratoi=1"], ["2 problems", "distil", "ratoi"]),
    "not an override": (["nonsense"], ["not an override: `nonsense`"]),
    "unknown recipe": (["--recipe", "fashion-ddpm-dmo"], ["unknown recipe", "fashion-ddpm-demo"]),
    "missing recipe": (["--recipe", "nowhere.yaml"], ["recipe not found: `nowhere.yaml`"]),
    "unknown data": (["data.name=cifar"], ["no data set and no folder of images: cifar", "fashion-mnist"]),
    "more steps than trained": (["evaluate.num_inference_steps=2000"], ["beyond the 1000 timesteps of training: 2000"]),
    "missing extra": (["build.backends=[tensorrt]"], ["pip install 'edgediff[trt]'"]),
}


@pytest.mark.parametrize(
    ("recipe", "option", "said"),
    [
        ("prune: 0.5", ["--ratio", "0.5"], "prune: not a section of keys: 0.5"),
        ("distill: place", ["--ratio", "0.5", "--kd", "lift"], "distill: not a section of keys: place"),
    ],
)
def test_an_option_of_a_section_that_is_none(recipe, option, said, edgediff, small_teacher, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe)
    start = ["compress", "--recipe", tmp_path / "recipe.yaml", "--teacher", small_teacher, "--out", tmp_path / "run"]
    code, out, err = edgediff(*start, *option)
    assert (code, out, err) == (2, "", f"error: {said}\n")


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "plan"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_with_a_hint_before_any_work(name, dry, edgediff, small_teacher, tmp_path):
    arguments, parts = BAD[name]
    teacher = [] if "--teacher" in arguments else ["--teacher", small_teacher]
    target = [] if {"--ratio", "--params"} & set(arguments) else ["--ratio", "0.5"]
    code, out, err = edgediff("compress", "--out", tmp_path / "run", *teacher, *target, *arguments, *dry)
    assert code == 2
    assert err.startswith("error: ") and out == ""
    for part in parts:
        assert part in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def damaged(small_teacher, folder, damage):
    shutil.copytree(small_teacher, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "pickle":
        weights.rename(folder / "unet" / "diffusion_pytorch_model.bin")
    else:
        (folder / "unet" / "config.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("damage", "said"), [("truncated", "damaged or incomplete"), ("pickle", "pickled"), ("config", "unet/config.json")]
)
def test_a_damaged_teacher(damage, said, edgediff, small_teacher, tmp_path):
    folder = damaged(small_teacher, tmp_path / "teacher", damage)
    code, _, err = edgediff("compress", "--teacher", folder, "--ratio", "0.5", "--out", tmp_path / "run")
    assert code == 2 and said in err and "hint: " in err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run(edgediff, small_teacher, tmp_path):
    start = ["prune", "--teacher", small_teacher, "--out", tmp_path / "run", "--quiet"]
    assert edgediff(*start, "--ratio", "0.5")[0] == 0
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    code, _, err = edgediff(*start, "--ratio", "0.25")
    assert code == 2 and "another recipe's run, old → new: prune.ratio 0.5 → 0.25: `" in err
    assert f"started with, `{tmp_path / 'run' / 'recipe.yaml'}`" in err and "start another with `--out`" in err
    code, _, err = edgediff(*start, "--params", "20k", "prune.seed=1", "prune.refine=svs", "prune.num_images=3")
    assert "prune.num_images 16 → 3; prune.params not given → 20000; prune.ratio 0.5 → not given; and 2 more: `" in err
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before


def test_a_teacher_that_moved_is_the_same_one(edgediff, small_teacher, tmp_path):
    start = ["prune", "--ratio", "0.5", "--out", tmp_path / "run", "--quiet", "--teacher"]
    assert edgediff(*start, small_teacher)[0] == 0
    made = (tmp_path / "run" / "pruned" / "manifest.json").read_bytes()
    moved = shutil.copytree(small_teacher, tmp_path / "moved")
    assert edgediff(*start, moved)[0] == 0
    assert (tmp_path / "run" / "pruned" / "manifest.json").read_bytes() == made
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["teacher"] == str(moved)
    code, _, err = edgediff(*start, "fashion-ddpm")
    assert code == 2 and f"another recipe's run, old → new: teacher {moved} → fashion-ddpm: `" in err
    shutil.rmtree(moved)
    code, _, err = edgediff(*start, moved)
    assert code == 2 and str(moved) in err


def test_a_file_where_the_run_folder_should_be(edgediff, small_teacher, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = edgediff("prune", "--teacher", small_teacher, "--ratio", "0.5", "--out", tmp_path / "file")
    assert code == 2 and err.startswith("error: cannot use `") and "Traceback" not in err
    assert (tmp_path / "file").read_text() == "mine"


def test_trt_without_a_builder_says_how_to_get_one(edgediff, small_teacher, tmp_path, monkeypatch):
    """A module that is None cannot be imported, as if it were not installed."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    start = ["compress", "--teacher", small_teacher, "--ratio", "0.5", "--out", tmp_path / "run"]
    code, _, err = edgediff(*start, "--trt")
    assert code == 2 and "pip install 'edgediff[rtx]'" in err
    assert not (tmp_path / "run").exists()


def test_a_stage_of_no_run(edgediff, tmp_path):
    for command in ("distill", "export", "build", "bench", "eval", "report"):
        code, _, err = edgediff(command, tmp_path / "none")
        assert code == 2 and "not a run folder" in err


def test_stages_one_by_one_over_one_folder(edgediff, small_teacher, tmp_path):
    run = Run(tmp_path / "run")
    short = ["distill.training.steps=2", "distill.training.batch_size=2"]
    code, out, _ = edgediff("prune", "--teacher", small_teacher, "--ratio", "0.5", "--out", run.path, "--json", *short)
    assert code == 0 and json.loads(out)["channels_removed"] == 0.5 and json.loads(out)["comparison"] is None
    code, out, _ = edgediff("distill", run.path, "--json", "--kd", "lift")
    assert code == 0 and json.loads(out)["kd"] == "lift"
    assert yaml.safe_load(run.recipe.read_text())["distill"]["kd"] == {"lift": 1.0}
    code, _, err = edgediff("distill", run.path, "distill.kd=place")
    assert code == 2 and "distill.kd" in err


def test_an_export_looks_at_all_models_before_it_begins(edgediff, small_teacher, tmp_path):
    run = Run(tmp_path / "run")
    assert edgediff("prune", "--teacher", small_teacher, "--ratio", "0.5", "--out", run.path)[0] == 0
    code, _, err = edgediff("export", run.path)
    assert code == 2 and "the student model is not there yet" in err and "edgediff distill" in err
    shutil.copytree(run.pruned, run.student)
    code, _, err = edgediff("export", run.path, "--trt", "build.backends=[tensorrt]")
    assert code == 2 and "pip install 'edgediff[" in err
    weights = run.student / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"torn")
    code, _, err = edgediff("export", run.path)
    assert code == 2 and f"does not have the content its manifest records: `{weights}`" in err
    assert not (run.path / "onnx").exists()


def test_a_refused_change_leaves_the_recipe_as_it_was(edgediff, small_teacher, tmp_path):
    out = tmp_path / "run"
    assert edgediff("prune", "--teacher", str(small_teacher), "--ratio", "0.5", "--out", str(out))[0] == 0
    before = (out / "recipe.yaml").read_text()
    code, _, said = edgediff("distill", str(out), "distill.teachers=[/nope]")
    assert code == 2
    assert "/nope" in said
    assert (out / "recipe.yaml").read_text() == before


def test_a_dry_run_prints_the_plan_and_writes_nothing(edgediff, small_teacher, tmp_path):
    arguments = ["compress", "--teacher", small_teacher, "--ratio", "0.5", "--out", tmp_path / "run", "--dry-run"]
    code, out, _ = edgediff(*arguments)
    assert code == 0 and "distill" in out and "MiB at the peak" in out
    plan = json.loads(edgediff(*arguments, "--json")[1])
    assert [stage["stage"] for stage in plan["stages"]] == [
        *("prune", "distill", "export", "build", "benchmark", "evaluate", "diagnose")
    ]
    assert plan["after"]["params"] < plan["before"]["params"] and plan["memory_mib"] > 0
    assert plan["recipe"]["prune"]["ratio"] == 0.5
    assert not (tmp_path / "run").exists()


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_dry_run_refuses_the_folder_of_another_run_and_leaves_it_alone(edgediff, small_teacher, tmp_path):
    run = tmp_path / "run"
    assert edgediff("prune", "--teacher", small_teacher, "--ratio", "0.5", "--out", run)[0] == 0
    before = contents(run)
    plan = ["compress", "--teacher", small_teacher, "--out", run, "--dry-run", "--ratio"]
    code, _, err = edgediff(*plan, "0.25")
    assert code == 2 and "another recipe's run" in err
    assert edgediff(*plan, "0.5", "evaluate.num_images=8")[0] == 0
    assert contents(run) == before


def test_a_resumed_run_goes_on_with_its_own_recipe(edgediff, small_teacher, tmp_path):
    run = Run(tmp_path / "run")
    assert (
        edgediff("prune", "--teacher", small_teacher, "--ratio", "0.5", "--out", run.path, "prune.refine=svs")[0] == 0
    )
    own = yaml.safe_load(run.recipe.read_text())
    again = ["compress", "--out", run.path, "--dry-run", "--json"]
    assert edgediff(*again)[0] == 2  # no target
    assert json.loads(edgediff(*again, "--resume")[1])["recipe"] == own
    longer = json.loads(edgediff(*again, "--resume", "distill.training.steps=7")[1])["recipe"]
    assert longer["distill"]["training"].pop("steps") == 7
    own["distill"]["training"].pop("steps")
    assert longer == own
    code, _, err = edgediff(*again, "--resume", "--ratio", "0.25")
    assert code == 2 and "prune.ratio 0.5 → 0.25" in err


def test_a_dry_run_refuses_the_targets_of_another_teacher(edgediff, small_teacher, tmp_path):
    targets = tmp_path / "targets"
    write_json(targets / "manifest.json", {"teacher": "another's", "scheduler": "another"})
    plan = ["compress", "--teacher", small_teacher, "--ratio", "0.5", "--out", tmp_path / "run", "--dry-run"]
    code, _, err = edgediff(*plan, "--cache-targets", "8", f"distill.cache.folder={targets}")
    assert (
        code == 2
        and "the target cache was made with another" in err
        and "noise schedule (another → " in err
        and "teacher (another's → " in err
    )


def test_errors_are_data_for_machines(edgediff, tmp_path):
    code, out, _ = edgediff("compress", "--teacher", "nobody", "--ratio", "0.5", "--out", tmp_path / "run", "--json")
    assert code == 2 and json.loads(out)["error"] == "unknown teacher: nobody"


def test_check_has_an_exit_code_for_every_outcome(edgediff, a_report, tmp_path):
    report, baseline = tmp_path / "report.json", tmp_path / "baseline.json"
    value = a_report.model_dump(mode="json")
    write_json(report, value)
    assert edgediff("check", report, "--baseline", baseline, "--write-baseline")[0] == 0
    code, out, _ = edgediff("check", report, "--baseline", baseline, "--junit", tmp_path / "junit.xml")
    assert code == 0 and "frechet_distance" in out and (tmp_path / "junit.xml").is_file()
    value["quality"]["rows"][1]["frechet_distance"] = 999.0
    write_json(report, value)
    code, out, err = edgediff("check", report, "--baseline", baseline, "--json")
    assert code == 1 and "regression: frechet_distance is 999, baseline 200, allowed at most 210" in err
    assert [row["verdict"] for row in json.loads(out)["findings"]].count("regression") == 1
    value["quality"]["profile"]["num_images"] = 7
    write_json(report, value)
    assert edgediff("check", report, "--baseline", baseline)[0] == 3
    assert edgediff("check", report, "--baseline", tmp_path / "none.json")[0] == 2


def test_doctor_says_what_every_backend_can_do(edgediff):
    code, out, _ = edgediff("doctor", "--json")
    health = json.loads(out)
    assert code == 0 and set(health["backends"]) >= {"pytorch", "onnxruntime", "tensorrt_rtx"}
    assert health["cores"] >= 1 and health["memory_free_gib"] > 0 and health["packages"]["torch"]
    code, out, _ = edgediff("doctor")
    assert "tensorrt_rtx" in out and health["cpu"].split()[0] in out


def test_recipes_are_listed_and_shown(edgediff):
    assert "fashion-ddpm-demo" in edgediff("recipes")[1]
    rows = json.loads(edgediff("recipes", "--json")[1])["recipes"]
    assert {row["name"] for row in rows} >= {"fashion-ddpm-demo", "fashion-ddpm-0.75"}
    assert edgediff("recipes", "show", "fashion-ddpm-demo")[1].startswith("# edgediff compress")


def heed_sigint():
    """A background job of a shell ignores SIGINT, and so would its children, this test's process among them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_says_how_to_go_on(small_teacher, tmp_path):
    """SIGINT while channels are being scored, a stage without a state of its own."""
    command = [sys.executable, "-m", "edgediff", "prune", "--teacher", str(small_teacher), "--ratio", "0.5"]
    command += ["--out", str(tmp_path / "run"), "prune.importance=diff_pruning", "prune.num_images=64"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_sigint
    )
    said = ""
    while "scoring channels" not in said and process.poll() is None:
        said += process.stderr.readline()
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "error: interrupted; finished stages are kept" in err and "hint: run the same command again" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "pruned").exists()


@pytest.mark.parametrize("stage", ["prune", "distill"])
def test_a_full_disk_names_the_path_and_keeps_what_was_finished(stage, edgediff, small_teacher, tiny_disk):
    """The pruned model fits on the small disk where the ballast is small; the training state never does."""
    run = tiny_disk / "run"
    (tiny_disk / "ballast").write_bytes(bytes(200_000 if stage == "prune" else 10_000))
    start = ["prune", "--teacher", small_teacher, "--ratio", "0.75", "--out", run, "distill.training.steps=2"]
    code, _, err = edgediff(*start)
    if stage == "distill":
        assert code == 0
        pruned = sorted(path.name for path in (run / "pruned").iterdir())
        code, _, err = edgediff("distill", run, "distill.training.batch_size=2")
        assert sorted(path.name for path in (run / "pruned").iterdir()) == pruned
    assert code == 1
    assert f"no space left while writing: `{run}" in err and "hint: free some space" in err
    assert "Traceback" not in err
    assert not [path.name for path in run.rglob("*.tmp")]
