"""The verb `plan`: every stage of a run is named, with what makes it long."""

import pytest
from diffusers import DDPMScheduler, UNet2DModel
from small_unet import SMALL_UNET

from edgediff import model_folder, pipeline, registry, teacher
from edgediff import plan as plans
from edgediff.errors import BadInputError
from edgediff.metrics.cost import model_cost
from edgediff.plan import outlines, plan
from edgediff.recipe import Recipe, check
from edgediff.registry import hub
from edgediff.run import Run

PACKAGED = {"name": "fashion-mnist-20k"}  # 20,000 images to train on, 10,000 to test with


def recipe_of(**values):
    return check({"data": PACKAGED, "prune": {"ratio": 0.5}, **values}, Recipe)


def planned(**values):
    found = plan(recipe_of(**values))
    return {stage.stage: stage for stage in found.stages}


def test_a_model_told_captions_in_latents_is_encoded_guided_and_diagnosed():
    stages = planned(teacher="fashion-sd", evaluate={"guidance_scale": 2, "num_images": 300, "num_class_images": 100})
    assert stages["encode"].what.startswith("latents of 30,000 images and embeddings of about ")
    assert stages["encode"].seconds > 0 and "MiB on disk" in stages["encode"].what
    assert "class accuracy, where classes are known: 100 at guidance 1, 4" in stages["evaluate"].what
    assert stages["diagnose"].what == "256 held-out images at 20 timesteps; sharpness"
    assert stages["diagnose"].seconds > 0


def test_a_teacher_that_is_not_here_is_planned_from_what_is_known_of_it(quiet, monkeypatch, tmp_path):
    """Nothing is fetched for it: neither data nor targets are held against it."""
    entry = registry.entry("ddpm-cifar10").model_copy(update={"config": SMALL_UNET})
    monkeypatch.setattr(registry, "entry", lambda name: entry)
    monkeypatch.setattr(hub, "cached", lambda repositories: None)
    monkeypatch.setattr(hub, "fetch", lambda repositories: pytest.fail("a plan fetches nothing"))
    values = {"teacher": "ddpm-cifar10", "data": {"name": "nowhere"}, "distill": {"cache": {"targets": 8}}}
    recipe = check({**values, "prune": {"ratio": 0.5}}, Recipe)
    stages = {stage.stage: stage for stage in pipeline.foresee(Run(tmp_path / "run"), recipe, quiet).stages}
    assert stages["encode"].what == "not counted: the teacher is not on this machine"
    assert stages["distill"].seconds > 0


def test_learned_depth_and_assistants_are_counted():
    depth = {"keep": 3, "by": "tinyfusion", "tinyfusion": {"steps": 500, "batch_size": 8}}
    stages = planned(
        teacher="fashion-dit",
        prune={"depth": depth},
        distill={"assistants": [{"ratio": 0.2, "steps": 1000}], "training": {"steps": 2000}},
    )
    assert "depth, by tinyfusion, learned in 500 steps of 8" in stages["prune"].what
    assert "kd place, 1000 steps of 64" in stages["assistant"].what
    assert 0 < stages["assistant"].seconds < stages["distill"].seconds


def distillations(**distill):
    """The seconds of all trainings of 100 samples, with a forward of 2 of the student."""
    recipe = check(
        {
            "teacher": "fashion-ddpm",
            "prune": {"ratio": 0.9},
            "distill": {"training": {"steps": 10, "batch_size": 10}, **distill},
        },
        Recipe,
    )
    teacher = model_cost(*plans._described("fashion-ddpm")).macs
    return [stage.seconds for stage in plans._distill_plans(recipe, plans.outlines(recipe), 2.0, 60.0 / teacher)]


def test_a_cached_teacher_answers_once():
    assert distillations() == [pytest.approx(100 * (3 * 2 + 60))]
    assert distillations(cache={"targets": 20}) == [pytest.approx(100 * 3 * 2 + 20 * 60)]
    assert distillations(cache={"targets": 2000}) == distillations()
    assert distillations(kd="none") == [pytest.approx(100 * 3 * 2)]


def test_a_plan_says_what_targets_take_on_disk(small_teacher):
    """One of 28x28 takes 1,568 bytes, and shards of 10,699 are whole."""

    def words(targets, **changes):
        distill = {"training": {"steps": 2000, "batch_size": 64}, "cache": {"targets": targets}, **changes}
        return planned(teacher=str(small_teacher), distill=distill)["distill"].what

    assert words(32768).endswith("; 32,768 teacher targets kept, 64 MiB on disk")
    assert words(65536).endswith("; 65,536 teacher targets kept, 112 MiB on disk")
    # As many as there are samples, each of them read by nobody.
    assert "; 128,000 teacher targets kept, 192 MiB on disk; none would be read again" in words(10**6)
    assert "kept" not in words(0) and "kept" not in words(32768, kd="none")
    # With the maps of the small teacher's feature points, (16, 14, 14), (32, 14, 14) twice, (32, 28, 28), (16, 28, 28).
    size = 2 * (28 * 28 + (16 + 32 + 32) * 14 * 14 + (32 + 16) * 28 * 28)
    whole = 4 * (2**24 // size) * size
    assert words(600, kd="output,feature").endswith(f"600 teacher targets kept, {whole / 2**20:.0f} MiB on disk")


def test_assistants_are_told_apart_by_their_size():
    recipe = {"teacher": "fashion-ddpm", "data": PACKAGED, "prune": {"ratio": 0.75}}
    found = plan(check({**recipe, "distill": {"assistants": [{"ratio": 0.25}, {"ratio": 0.5}]}}, Recipe)).stages
    first, second = (stage.what for stage in found if stage.stage == "assistant")
    sizes = [plan(check({**recipe, "prune": {"ratio": ratio}}, Recipe)).after.params for ratio in (0.25, 0.5)]
    assert first.startswith(f"ratio 0.25, {sizes[0]:,} parameters: kd place")
    assert second.startswith(f"ratio 0.5, {sizes[1]:,} parameters: kd place")


@pytest.mark.parametrize(
    ("ratio", "prune"), [(0.75, {"ratio": 0.75}), (0.9, {"params": 250_000}), (0.9, {"depth": {"keep": 0}})]
)
def test_an_assistant_no_larger_than_the_student_is_refused(ratio, prune):
    recipe = {"teacher": "fashion-ddpm", "data": PACKAGED, "prune": prune}
    with pytest.raises(BadInputError, match=rf"one of ratio {ratio} has .* parameters, no more than the student's"):
        outlines(check({**recipe, "distill": {"assistants": [{"ratio": ratio}]}}, Recipe))


def test_an_assistant_as_narrow_as_the_student_is_larger_by_its_blocks():
    recipe = {"teacher": "fashion-ddpm", "data": PACKAGED, "prune": {"ratio": 0.5, "depth": {"keep": 0}}}
    assistant, student = outlines(check({**recipe, "distill": {"assistants": [{"ratio": 0.5}]}}, Recipe))
    assert assistant.widths == student.widths


def test_an_assistant_s_student_is_taught_by_it_alone_or_by_all():
    assistants = [{"ratio": 0.84}]  # whose forward takes 2, too
    of_assistant, alone = distillations(assistants=assistants)
    assert of_assistant > 100 * 60 and alone < 100 * (3 * 2 + 2)
    *_, all_of_them = distillations(assistants=assistants, guidance="dense")
    assert all_of_them - alone == pytest.approx(100 * (60 - 2) / 2, rel=0.02)


def test_a_model_in_pixels_has_nothing_to_encode(small_teacher):
    stages = planned(teacher=str(small_teacher), evaluate={"num_images": 100})
    assert "encode" not in stages and "class accuracy" not in stages["evaluate"].what
    assert stages["diagnose"].what.startswith("100 held-out images")


def test_drawn_images_that_take_more_memory_than_training_are_counted(small_recipe):
    """A byte for every value of every role's images."""
    few, many, more = (
        plan(small_recipe(evaluate={"num_images": count})).memory_mib for count in (100, 10**6, 2 * 10**6)
    )
    assert few < many and more - many == pytest.approx(3 * 10**6 * 28 * 28 / 2**20)


def test_a_flow_model_s_student_predicts_nothing_but_velocity():
    with pytest.raises(BadInputError, match="flow's velocity and nothing else"):
        planned(teacher="fashion-mmdit", distill={"kd": "angular"})
    with pytest.raises(BadInputError, match="flow's velocity and nothing else"):
        planned(teacher="fashion-mmdit", distill={"kd_space": "epsilon"})


def test_where_the_last_timestep_is_noise_alone_a_student_may_be_compared_in_epsilon_but_not_predict_it(tmp_path):
    loaded = model_folder.load(teacher.resolve("fashion-ddpm").folder)
    scheduler = DDPMScheduler.from_config(
        loaded.scheduler.config, rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    model_folder.save(tmp_path / "to noise", loaded.model, scheduler)
    outlines(recipe_of(teacher=str(tmp_path / "to noise"), distill={"kd_space": "epsilon"}))
    with pytest.raises(BadInputError, match="cannot predict epsilon here"):
        outlines(recipe_of(teacher=str(tmp_path / "to noise"), distill={"student_prediction": "epsilon"}))


def test_conditioning_that_nothing_can_replace_is_not_dropped(tmp_path):
    config = {**model_folder.load(teacher.resolve("fashion-ddpm").folder).model.config, "num_class_embeds": 10}
    model_folder.save(tmp_path / "classes", UNet2DModel.from_config(config), DDPMScheduler())
    with pytest.raises(BadInputError, match=r"data\.conditioning_dropout: the teacher knows no label"):
        outlines(recipe_of(teacher=str(tmp_path / "classes"), data={**PACKAGED, "conditioning_dropout": 0.1}))
