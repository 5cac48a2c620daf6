"""The verb `distill`: every objective, what is logged, resuming, refusals."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors import safe_open
from safetensors.torch import save_file

from edgediff import model_folder, pipeline, samples
from edgediff.artifacts import read_json, sha256, write_json, write_text
from edgediff.data import fashion_mnist
from edgediff.distill import distill, taught_batches
from edgediff.distillation.identity import target_source
from edgediff.distillation.objective import Distillation
from edgediff.errors import BadInputError, StageFailedError
from edgediff.families.unet2d import UNet2D
from edgediff.pipeline import check_targets, refuse_other_recipe
from edgediff.prune import prune
from edgediff.recipe import dump
from edgediff.run import Run
from edgediff.training.learning_rate import learning_rate
from edgediff.training.precision import settled

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def pruned(small_recipe, tmp_path, quiet):
    """A run folder with a pruned model."""
    run = Run(tmp_path / "run")
    prune(run, small_recipe(), quiet)
    return run


def log_of(run):
    return [json.loads(line) for line in run.train_log.read_text().splitlines()]


@pytest.mark.parametrize("kd", ["none", "output", "lift", "place", "output,feature=0.1"])
def test_every_objective_trains_a_stock_student(kd, pruned, small_recipe, quiet):
    summary = distill(pruned, small_recipe(distill={"kd": kd, **SHORT}), quiet)
    assert (summary.kd, summary.steps) == (kd, 3)
    student = DDPMPipeline.from_pretrained(pruned.student).unet
    before = DDPMPipeline.from_pretrained(pruned.pruned).unet
    assert student.config.block_out_channels == before.config.block_out_channels
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), before.parameters(), strict=True))
    lines = log_of(pruned)
    assert [line["step"] for line in lines] == [1, 2, 3]
    expected = {"step", "loss", "diffusion", "grad_norm", "learning_rate"}
    if kd != "none":
        expected |= {"slope", "intercept"}
        expected |= set(summary.kd.replace("=0.1", "").split(","))
    if kd in ("lift", "place"):
        expected |= {"coarse", "fine", "fine_weight"}
    of_terms = {f"grad_norm.{name}" for name in expected & {"diffusion", *summary.kd.replace("=0.1", "").split(",")}}
    assert set(lines[0]) == expected | of_terms  # every hundredth step, from the first
    assert all(set(line) == expected for line in lines[1:])


ONE_STEP = {"training": {"steps": 1, "batch_size": 2, "warmup_steps": 1, "checkpoint_every": 2}}
SHORT = {"training": {"steps": 3, "batch_size": 2, "warmup_steps": 1, "checkpoint_every": 2}}


def test_the_logged_parts_add_up_to_the_loss(pruned, small_recipe, quiet):
    distill(pruned, small_recipe(distill={"kd": {"place": 0.5}, "diffusion_weight": 2.0, **SHORT}), quiet)
    for line in log_of(pruned):
        kd = line["coarse"] + line["fine_weight"] * line["fine"]
        assert line["place"] == pytest.approx(0.5 * kd, rel=1e-5)
        assert line["loss"] == pytest.approx(line["diffusion"] + line["place"], rel=1e-5)


def test_distillation_brings_the_student_closer_to_its_teacher(pruned, small_recipe, quiet):
    steps = {"training": {"steps": 60, "batch_size": 8, "warmup_steps": 5, "learning_rate": 3e-3, "ema_decay": 0.9}}
    distill(pruned, small_recipe(distill=steps), quiet)
    kd = [line["place"] for line in log_of(pruned)]
    assert sum(kd[-10:]) < 0.8 * sum(kd[:10])


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_the_student_predicts_in_its_own_space(prediction, pruned, small_recipe, quiet, without_edgediff):
    """Its scheduler says so, and diffusers' own pipeline samples from it."""
    distill(pruned, small_recipe(distill={"student_prediction": prediction, **SHORT}), quiet)
    shown = "pipeline.scheduler.config.prediction_type, pipeline(num_inference_steps=2, output_type='np').images.shape"
    assert without_edgediff(pruned.student, shown).splitlines()[-1] == f"{prediction} (1, 28, 28, 1)"


def test_fresh_weights_forget_the_teacher(pruned, small_recipe, quiet):
    """A learning rate of next to nothing leaves the first weights: those of the pruned model, or new ones."""
    still = {"training": {**SHORT["training"], "learning_rate": 1e-12}}
    cut = DDPMPipeline.from_pretrained(pruned.pruned).unet.conv_in.weight
    distances = {}
    for initial in ("pruned", "fresh"):
        distill(pruned, small_recipe(distill={"initial": initial, **still}), quiet)
        weight = DDPMPipeline.from_pretrained(pruned.student).unet.conv_in.weight
        distances[initial] = (weight - cut).abs().max().item()
        shutil.rmtree(pruned.checkpoints)
    assert distances["pruned"] < 1e-6 < 0.01 < distances["fresh"]


def test_a_target_cache_changes_nothing_but_the_time(pruned, small_recipe, quiet, tmp_path):
    """Cold or warm, the student is the same to the last bit, and the manifest says what was saved."""
    cache = {"targets": 6, "folder": str(tmp_path / "targets")}
    recipe = small_recipe(distill={"cache": cache, "training": {"steps": 9, "batch_size": 2}})
    cold = distill(pruned, recipe, quiet)
    assert (cold.cache["computed"], cold.cache["read"]) == (6, 12)
    weights = sha256(pruned.student / WEIGHTS)
    shutil.rmtree(pruned.student)
    shutil.rmtree(pruned.checkpoints)
    warm = distill(pruned, recipe, quiet)
    assert (warm.cache["computed"], warm.cache["read"]) == (0, 18)
    assert sha256(pruned.student / WEIGHTS) == weights


def test_a_resumed_training_counts_what_all_its_parts_did(pruned, small_recipe, quiet, tmp_path):
    def of(steps):
        training = {**SHORT["training"], "steps": steps}
        return small_recipe(
            distill={"cache": {"targets": 6, "folder": str(tmp_path / "targets")}, "training": training}
        )

    first = distill(pruned, of(2), quiet)
    shutil.rmtree(pruned.student)
    whole = distill(pruned, of(5), quiet, resume=True)
    assert (first.cache["computed"], first.cache["read"]) == (4, 0)
    assert (whole.cache["computed"], whole.cache["read"]) == (6, 4)
    assert whole.cache["teacher_seconds"] > first.cache["teacher_seconds"]


def test_the_student_is_there_before_its_cache_is_finished(pruned, small_recipe, quiet, monkeypatch):
    def fail(path, value):
        if "teacher_seconds_a_target" in value:
            raise OSError(errno.EIO, "Input/output error", str(path))
        write_json(path, value)

    monkeypatch.setattr("edgediff.distillation.cache.write_json", fail)
    recipe = small_recipe(distill={"cache": {"targets": 6}, **SHORT})
    with pytest.raises(OSError, match="Input/output error"):
        distill(pruned, recipe, quiet)
    assert distill(pruned, recipe, quiet).cache["computed"] == 6  # nothing left to do


def test_without_a_teacher_the_seed_is_the_trainings_whatever_the_cache(pruned, small_recipe, quiet, tmp_path):
    """Nothing is remembered then, so nothing asks for the cache's noise."""
    positions, noise = torch.arange(4), []
    student = model_folder.load(pruned.pruned)
    for seed in (0, 1):
        settings = {"kd": "none", "cache": {"targets": 8}, "training": {"seed": seed}}
        recipe = small_recipe(distill=settings)
        images = samples.learned(recipe.data, "train", student, tmp_path, quiet)
        batches = taught_batches(student, [student], images, recipe, tmp_path, quiet.say)
        noise.append(batches(0, positions).sample)
    assert not torch.equal(*noise)


def test_a_student_stays_finished_when_its_cache_is_moved(pruned, small_recipe, quiet, tmp_path):
    caches = [{"targets": 6, "folder": str(tmp_path / name)} for name in ("here", "there")]
    first = distill(pruned, small_recipe(distill={"cache": caches[0], **SHORT}), quiet)
    assert distill(pruned, small_recipe(distill={"cache": caches[1], **SHORT}), quiet) == first


def test_the_cache_of_another_precision_is_refused(pruned, small_recipe, quiet, tmp_path):
    cache = {"targets": 6, "folder": str(tmp_path / "targets")}
    distill(pruned, small_recipe(distill={"cache": cache, **SHORT}), quiet)
    shutil.rmtree(pruned.checkpoints)
    half = {"cache": cache, "training": {**SHORT["training"], "precision": "bf16"}}
    with pytest.raises(BadInputError, match=r"another precision of the teacher, .* \(fp32 → bf16\)"):  # before any work
        check_targets(Run(tmp_path / "other"), small_recipe(distill=half))
    with pytest.raises(BadInputError, match="another precision"):
        distill(pruned, small_recipe(distill=half), quiet)
    of_another_seed = small_recipe(distill={"cache": {**cache, "seed": 1}, **SHORT})
    with pytest.raises(BadInputError, match=r"another seed \(0 → 1\)"):  # before any work
        check_targets(Run(tmp_path / "other"), of_another_seed)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"variance_type": "fixed_large"}, True),  # of the sampler
        ({"a_key_of_a_later_diffusers": 1}, True),
        ({"beta_end": 0.03}, False),
        ({"prediction_type": "sample"}, False),
    ],
)
def test_whose_targets_a_cache_holds_hangs_on_the_noise_alone(small_recipe, change, same):
    recipe = small_recipe(distill={"cache": {"targets": 6}})
    one, other = (DDPMScheduler.from_config({"beta_end": 0.012, **more}) for more in ({}, change))
    described = (target_source(recipe, ["a"], [of], "epsilon")["scheduler"] for of in (one, other))
    assert len(set(described)) == (1 if same else 2)


def test_settings_of_steps_change_nothing_once_all_steps_are_taken(pruned, small_recipe, quiet):
    recipe = small_recipe(distill=SHORT)
    write_text(pruned.recipe, dump(recipe))
    distill(pruned, recipe, quiet)

    def changed(**training):
        return small_recipe(distill={"training": {**SHORT["training"], **training}})

    with pytest.raises(BadInputError, match=r"learning_rate 0\.001 → 0\.0001"):
        refuse_other_recipe(pruned, changed(learning_rate=1e-4))
    refuse_other_recipe(pruned, changed(learning_rate=1e-4, steps=9))
    write_text(pruned.recipe, dump(changed(steps=9)))  # claimed, and stopped on the way
    refuse_other_recipe(pruned, changed(learning_rate=1e-4, steps=9))


def test_a_step_that_memory_does_not_hold_is_one_sentence(pruned, small_recipe, quiet, monkeypatch):
    intact = Distillation.forward

    def greedy(self, batch):
        if batch.step == 2:
            torch.empty(2**50)
        return intact(self, batch)

    monkeypatch.setattr(Distillation, "forward", greedy)
    recipe = small_recipe(distill={"training": {"steps": 4, "batch_size": 4, "checkpoint_every": 2}})
    with pytest.raises(StageFailedError, match="memory does not hold a training step of batch_size 4") as caught:
        distill(pruned, recipe, quiet)
    assert "`batch_size` and as much more `gradient_accumulation`, or `gradient_checkpointing" in caught.value.hint
    monkeypatch.setattr(Distillation, "forward", intact)
    settings = {"batch_size": 2, "gradient_accumulation": 2}
    smaller = small_recipe(distill={"training": {"steps": 4, "checkpoint_every": 2, **settings}})
    assert distill(pruned, smaller, quiet, resume=True).steps == 4


def test_models_that_memory_does_not_hold_are_one_sentence(pruned, small_recipe, quiet, monkeypatch):
    monkeypatch.setattr(Distillation, "to", lambda self, device: torch.empty(2**50))
    with pytest.raises(StageFailedError, match="memory does not hold the student and its teachers"):
        distill(pruned, small_recipe(distill=SHORT), quiet)


def test_a_finished_student_is_not_trained_again(pruned, small_recipe, quiet):
    recipe = small_recipe(distill=SHORT)
    first = distill(pruned, recipe, quiet)
    written = (pruned.student / "manifest.json").stat().st_mtime_ns
    assert distill(pruned, recipe, quiet) == first
    assert (pruned.student / "manifest.json").stat().st_mtime_ns == written


def test_where_data_and_what_is_encoded_of_them_lie_decides_nothing(pruned, small_recipe, quiet, tmp_path):
    by_images = {"ratio": 0.5, "importance": "taylor", "num_images": 2}
    here = {"name": "fashion-mnist", "folder": str(fashion_mnist.packaged_folder())}
    recipe = small_recipe(distill=SHORT, prune=by_images, data=here)
    shutil.rmtree(pruned.pruned)
    prune(pruned, recipe, quiet)
    write_text(pruned.recipe, dump(recipe))
    first = distill(pruned, recipe, quiet)
    there = {"encoded": str(tmp_path / "encoded"), "folder": str(shutil.copytree(here["folder"], tmp_path / "there"))}
    moved = small_recipe(distill=SHORT, prune=by_images, data={**here, **there})
    written = [(pruned.path / of / "manifest.json").stat().st_mtime_ns for of in ("pruned", "student")]
    refuse_other_recipe(pruned, moved)
    prune(pruned, moved, quiet)
    assert distill(pruned, moved, quiet) == first
    assert [(pruned.path / of / "manifest.json").stat().st_mtime_ns for of in ("pruned", "student")] == written


WATCHED = {"gradient_norms_every": 7, "training": {**SHORT["training"], "checkpoint_every": 1, "trackers": []}}


def test_a_finished_student_stays_so_however_it_was_watched(pruned, small_recipe, quiet):
    first = distill(pruned, small_recipe(distill=SHORT), quiet)
    written = (pruned.student / "manifest.json").stat().st_mtime_ns
    write_text(pruned.recipe, dump(small_recipe(distill=SHORT)))
    refuse_other_recipe(pruned, small_recipe(distill=WATCHED))
    assert distill(pruned, small_recipe(distill=WATCHED), quiet) == first
    assert (pruned.student / "manifest.json").stat().st_mtime_ns == written
    other = {"training": {**WATCHED["training"], "seed": 1}}
    with pytest.raises(BadInputError, match=r"training\.seed 0 → 1"):
        distill(pruned, small_recipe(distill=other), quiet)


def test_how_a_training_is_watched_may_change_on_resuming(pruned, small_recipe, quiet):
    distill(pruned, small_recipe(distill=SHORT), quiet)
    shutil.rmtree(pruned.student)
    longer = {**WATCHED, "training": {**WATCHED["training"], "steps": 5}}
    state = pruned.checkpoints / "training.safetensors"
    _edit(state, lambda identity: identity["distill"].update(gradient_norms_every=100))  # as states once said
    with pytest.raises(BadInputError, match=r"belongs to another training \(distill.kd.lift not given → 1.0"):
        distill(pruned, small_recipe(distill={**longer, "kd": "lift"}), quiet, resume=True)
    assert distill(pruned, small_recipe(distill=longer), quiet, resume=True).steps == 5


def test_a_training_under_another_sum_of_feature_losses_does_not_go_on_unheard(pruned, small_recipe, quiet):
    recipe = small_recipe(distill={**SHORT, "kd": "output,feature"})
    distill(pruned, recipe, quiet)
    shutil.rmtree(pruned.student)
    _edit(pruned.checkpoints / "training.safetensors", lambda identity: identity["distill"].pop("feature_losses"))
    for resume in (True, False):  # without, before `--resume` is advised
        with pytest.raises(BadInputError, match=r"another training \(distill.feature_losses not given → added up"):
            distill(pruned, recipe, quiet, resume=resume)


def _edit(state, change):
    """Change what a saved state says it belongs to."""
    with safe_open(state, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open cannot be iterated)
        facts = json.loads(file.metadata()["facts"])
    change(facts["identity"])
    save_file(tensors, state, metadata={"facts": json.dumps(facts)})


def test_nothing_pruned_is_refused(small_recipe, tmp_path, quiet):
    with pytest.raises(BadInputError, match="the pruned model is not there yet") as caught:
        distill(Run(tmp_path / "none"), small_recipe(), quiet)
    run = tmp_path / "none"
    assert f"edgediff prune --recipe {run}/recipe.yaml --out {run}" in caught.value.hint


def test_a_non_finite_loss_stops_and_rolls_back(pruned, small_recipe, quiet, monkeypatch):
    """A loss that breaks at step 4 leaves the state and the log of step 2, from which a resume finishes."""
    recipe = small_recipe(distill={"training": {"steps": 6, "batch_size": 2, "checkpoint_every": 2}})
    intact = Distillation.forward

    def breaks(self, batch):
        loss, values = intact(self, batch)
        return (loss * float("nan"), values) if batch.step == 3 else (loss, values)

    monkeypatch.setattr(Distillation, "forward", breaks)
    with pytest.raises(StageFailedError, match=r"step 4 .*rolled back to step 2") as caught:
        distill(pruned, recipe, quiet)
    assert "learning_rate" in caught.value.hint
    assert [line["step"] for line in log_of(pruned)] == [1, 2]
    assert not pruned.student.exists()
    monkeypatch.setattr(Distillation, "forward", intact)
    slower = small_recipe(
        distill={"training": {"steps": 6, "batch_size": 2, "checkpoint_every": 2, "learning_rate": 1e-4}}
    )
    distill(pruned, slower, quiet, resume=True)
    settings = read_json(pruned.student / "manifest.json")["settings"]
    assert [(part["from_step"], part["learning_rate"]) for part in settings] == [(0, 1e-3), (2, 1e-4)]


def test_a_training_in_auto_goes_on_in_the_precision_it_began_with(pruned, small_recipe, quiet):
    """`auto` may choose another one on another machine; only who said `auto` may say which it was."""

    def of(precision, steps=3):
        return small_recipe(distill={"training": {**SHORT["training"], "precision": precision, "steps": steps}})

    here = settled(of("auto").distill.training, torch.device("cpu")).precision
    other = "fp32" if here == "bf16" else "bf16"
    pipeline.claim(pruned, of("auto"))
    distill(pruned, of("auto"), quiet)
    with pytest.raises(BadInputError, match="another training") as caught:
        distill(pruned, of(other, steps=4), quiet, resume=True)
    assert f"it began with `precision={here}`" in caught.value.hint
    with pytest.raises(BadInputError, match=r"distill\.training\.precision auto → "):
        pipeline.refuse_other_recipe(pruned, of(other, steps=4))
    pipeline.refuse_other_recipe(pruned, of(here, steps=4))
    assert distill(pruned, of(here, steps=4), quiet, resume=True).steps == 4
    pipeline.claim(pruned, of(here, steps=4))
    with pytest.raises(BadInputError, match=r"distill\.training\.precision"):
        pipeline.refuse_other_recipe(pruned, of(other, steps=4))


def test_a_compression_that_would_be_refused_keeps_the_runs_recipe(pruned, small_recipe, quiet):
    """A standing training, other settings, and no `--resume`: refused before the recipe is written, and by the plan."""
    recipe = small_recipe(distill=SHORT)
    pipeline.claim(pruned, recipe)
    distill(pruned, recipe, quiet)
    before = pruned.recipe.read_text()
    longer = small_recipe(distill={"training": {**SHORT["training"], "steps": 9}})
    for go in (pipeline.compress, pipeline.foresee):
        with pytest.raises(BadInputError, match="not finished stands at step 3") as caught:
            go(pruned, longer, quiet)
        assert "--resume" in caught.value.hint and pruned.recipe.read_text() == before
    pipeline.foresee(pruned, longer, quiet, resume=True)
    pipeline.foresee(pruned, recipe, quiet)
    other, fewer = (small_recipe(distill={**SHORT, **changes}) for changes in ({"kd": "output"}, ONE_STEP))
    for changed, message in ((other, "holds another recipe's run"), (fewer, "step 3, beyond the 1 asked for")):
        for resume in (False, True):
            with pytest.raises(BadInputError, match=message):
                pipeline.compress(pruned, changed, quiet, resume=resume)
    assert pruned.recipe.read_text() == before


def test_a_cache_without_feature_maps_is_refused_before_images_are_looked_at(pruned, small_recipe, quiet, monkeypatch):
    cache = {"targets": 8}
    distill(pruned, small_recipe(distill={"kd": "output", "cache": cache, **SHORT}), quiet)
    monkeypatch.setattr(samples, "learned", None)
    shutil.rmtree(pruned.student)
    shutil.rmtree(pruned.checkpoints)
    with pytest.raises(BadInputError, match="the target cache was made with another features"):
        distill(pruned, small_recipe(distill={"kd": "feature", "cache": cache, **SHORT}), quiet)


def test_a_live_teacher_that_answers_no_numbers_is_named(pruned, small_recipe, quiet, monkeypatch):
    def overflows(self, *arguments, **conditioning):
        prediction, features = intact(self, *arguments, **conditioning)
        return prediction * torch.inf, features

    intact = UNet2D.prediction_and_features
    monkeypatch.setattr(UNet2D, "prediction_and_features", overflows)
    with pytest.raises(StageFailedError, match=r"not finite at step 1 \(targets.prediction\)") as caught:
        distill(pruned, small_recipe(distill={**SHORT, "cache": {"targets": 0}}), quiet)
    assert "the teacher's weights" in caught.value.hint


def test_a_training_without_its_student_needs_resume(pruned, small_recipe, quiet):
    recipe = small_recipe(distill=SHORT)
    distill(pruned, recipe, quiet)
    (pruned.student / "manifest.json").unlink()
    with pytest.raises(BadInputError, match="a finished training stands at step 3") as caught:
        distill(pruned, recipe, quiet)
    assert "--resume" in caught.value.hint
    distill(pruned, recipe, quiet, resume=True)
    assert (pruned.student / "manifest.json").exists()


def kill_when(run, minimum_step, command):
    """Start `command` and SIGKILL it once its log has passed `minimum_step`."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if run.checkpoints.exists() and any(run.checkpoints.iterdir()) and steps_done(run) >= minimum_step:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def steps_done(run):
    state = run.checkpoints / "training.safetensors"
    if not state.exists():
        return 0
    from edgediff.training.checkpoint import read_facts

    return read_facts(state)["step"]


@pytest.mark.parametrize("targets", [0, 120], ids=["live teacher", "cached targets"])
def test_killed_three_times_it_ends_with_the_same_weights(targets, pruned, small_recipe, quiet, tmp_path):
    """SIGKILL at three moments, then `--resume`: weights and log are those of a run that was never killed.

    The cache holds 30 of the 90 steps' targets: it is killed while it fills, and while it is read.
    """
    settings = {"steps": 90, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 1}
    recipe = small_recipe(distill={"training": settings, "cache": {"targets": targets}})
    straight = Run(tmp_path / "straight")
    prune(straight, recipe, quiet)
    distill(straight, recipe, quiet)
    write_text(pruned.recipe, dump(recipe))
    command = [sys.executable, "-m", "edgediff", "distill", str(pruned.path), "--resume", "--quiet"]
    for moment in (5, 20, 40):
        assert kill_when(pruned, moment, command) == -signal.SIGKILL
    assert 40 <= steps_done(pruned) < 90
    summary = distill(pruned, recipe, quiet, resume=True)
    assert not targets or summary.cache["read"] + summary.cache["computed"] == 90 * 4
    assert sha256(pruned.student / WEIGHTS) == sha256(straight.student / WEIGHTS)
    assert pruned.train_log.read_text() == straight.train_log.read_text()
    assert len(read_json(pruned.student / "manifest.json")["resumed_at"]) == 3


def test_ctrl_c_saves_and_says_how_to_go_on(pruned, small_recipe, quiet):
    recipe = small_recipe(distill={"training": {"steps": 5000, "batch_size": 4, "checkpoint_every": 1000}})
    write_text(pruned.recipe, dump(recipe))
    command = [sys.executable, "-m", "edgediff", "distill", str(pruned.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    while not pruned.train_log.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(3)  # past the first steps, and far from the last
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "training stopped at step" in err and "--resume" in err and "Traceback" not in err
    assert steps_done(pruned) == len(log_of(pruned)) > 0


def test_the_learning_rate_warms_up_and_falls_to_zero(small_recipe):
    config = small_recipe(
        distill={"training": {"steps": 100, "warmup_steps": 9, "learning_rate": 1.0}}
    ).distill.training
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert rates[100] == pytest.approx(0, abs=1e-9)
