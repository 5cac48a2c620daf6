"""Teachers in stages: chains of assistants, several teachers in turns, and what they refuse."""

import shutil
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from edgediff import model_folder, pipeline, roles, teacher
from edgediff.artifacts import read_json, write_json, write_text
from edgediff.diffusion.parameterisation import convert
from edgediff.distill import distill
from edgediff.distillation.targets import LiveTeacher
from edgediff.errors import BadInputError
from edgediff.plan import check_taught
from edgediff.prune import prune
from edgediff.recipe import dump
from edgediff.run import Run
from edgediff.training.batches import NoisedBatch

SHORT = {"training": {"steps": 3, "batch_size": 2, "warmup_steps": 1, "checkpoint_every": 2}}
CHAIN = {"assistants": [{"ratio": 0.25}, {"ratio": 0.5, "steps": 2}], **SHORT}


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory, small_teacher):
    """A teacher of the same architecture and other weights."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("teachers") / "other"
    model_folder.save(folder, UNet2DModel.from_config(model_folder.load(small_teacher).model.config), DDPMScheduler())
    return folder


def params(folder):
    return sum(p.numel() for p in DDPMPipeline.from_pretrained(folder).unet.parameters())


def test_each_assistant_teaches_the_next(small_recipe, quiet, tmp_path):
    run, recipe = Run(tmp_path / "run"), small_recipe(prune={"ratio": 0.75}, distill=CHAIN)
    prune(run, recipe, quiet)
    pipeline.teach(run, recipe, quiet)
    folders = [roles.folder(run, recipe, "teacher"), run.assistant(0).student, run.assistant(1).student, run.student]
    sizes = [params(folder) for folder in folders]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    for before, after in pairwise(folders):
        assert read_json(after / "manifest.json")["inputs"]["teacher"] == model_folder.fingerprint(before)
    steps = [read_json(folder / "manifest.json")["training"]["steps"] for folder in folders[1:]]
    assert steps == [3, 2, 3]


def test_a_finished_chain_is_not_made_again(small_recipe, quiet, tmp_path):
    run, recipe = Run(tmp_path / "run"), small_recipe(prune={"ratio": 0.75}, distill=CHAIN)
    prune(run, recipe, quiet)
    pipeline.teach(run, recipe, quiet)
    manifests = sorted(run.path.rglob("manifest.json"))
    times = [manifest.stat().st_mtime_ns for manifest in manifests]
    pipeline.teach(run, recipe, quiet)
    assert [manifest.stat().st_mtime_ns for manifest in manifests] == times


def test_a_plan_counts_what_stands_in_the_folder_as_done(small_recipe, quiet, tmp_path):
    chain = {**CHAIN, "assistants": [{"ratio": 0.25, "steps": 3}, {"ratio": 0.5, "steps": 2}]}
    run, recipe = Run(tmp_path / "run"), small_recipe(prune={"ratio": 0.75}, distill=chain)

    def done(planned):
        found = pipeline.foresee(run, planned, quiet, resume=True).stages
        stages = [stage for stage in found if stage.what.startswith("done: ")]
        assert all(stage.seconds == 0 for stage in stages)
        return [stage.stage for stage in stages]

    assert done(recipe) == []
    pipeline.claim(run, recipe)
    prune(run, recipe, quiet)
    assert done(recipe) == ["prune"]
    pipeline.teach(run, recipe, quiet)
    assert done(recipe) == ["prune", "assistant", "assistant", "distill"]
    longer = small_recipe(prune={"ratio": 0.75}, distill={**chain, "training": {**SHORT["training"], "steps": 4}})
    assert done(longer) == ["prune", "assistant", "assistant"]
    shutil.rmtree(run.assistant(1).student)
    assert done(recipe) == ["prune", "assistant"]


def test_an_assistant_that_is_not_finished_is_not_gone_on_with_unasked(small_recipe, quiet, tmp_path):
    run, recipe = Run(tmp_path / "run"), small_recipe(prune={"ratio": 0.75}, distill=CHAIN)
    pipeline.claim(run, recipe)
    prune(run, recipe, quiet)
    pipeline.teach(run, recipe, quiet)
    shutil.rmtree(run.assistant(0).student)
    for go in (pipeline.compress, pipeline.foresee):
        with pytest.raises(BadInputError, match="not finished stands at step 3") as caught:
            go(run, recipe, quiet)
        assert str(run.assistant(0).checkpoints) in caught.value.message and "--resume" in caught.value.hint


def test_dense_guidance_is_by_everyone_before(small_recipe, tmp_path):
    run, recipe = Run(tmp_path / "run"), small_recipe(prune={"ratio": 0.75}, distill={**CHAIN, "guidance": "dense"})
    teacher = roles.folder(run, recipe, "teacher")
    first, second = (run.assistant(place).student for place in (0, 1))
    assert roles.teaching(run, recipe) == [teacher, first, second]
    chain = roles.assistants(run, recipe)
    assert [roles.teaching(*stage) for stage in chain] == [[teacher], [teacher, first]]
    assert [stage.prune.ratio for _, stage in chain] == [0.25, 0.5]
    last_only = small_recipe(prune={"ratio": 0.75}, distill=CHAIN)
    assert roles.teaching(run, last_only) == [second]
    assert [roles.teaching(*stage) for stage in roles.assistants(run, last_only)] == [[teacher], [first]]


def test_assistants_of_a_shallow_student_lose_channels_only(small_recipe):
    shallow = small_recipe(prune={"ratio": 0.5, "depth": {"keep": 0}}, distill={"assistants": [{"ratio": 0.25}]})
    assert [(of.prune.ratio, of.prune.depth) for of in roles.assistant_recipes(shallow)] == [(0.25, None)]


def test_a_chain_encodes_its_data_once(small_recipe, tmp_path):
    run, recipe = Run(tmp_path / "run"), small_recipe(prune={"ratio": 0.75}, distill=CHAIN)
    assert {roles.encoded(*stage) for stage in roles.assistants(run, recipe)} == {roles.encoded(run, recipe)}


def test_several_teachers_speak_in_turns(small_teacher, other_teacher):
    """Every entry has one of them, the same at every visit, each about as often."""
    teachers = [model_folder.load(folder) for folder in (small_teacher, other_teacher)]
    count = 64
    sample = torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    timestep = torch.arange(count) * 15
    batch = NoisedBatch(0, sample, timestep, sample, sample, {})
    together = LiveTeacher(teachers, [(), ()])(torch.arange(count), batch).prediction
    with torch.no_grad():
        alone = [teacher.model(sample, timestep).sample for teacher in teachers]
    # Other batch sizes add up in another order: float32 rounding.
    by = torch.stack([(together - said).flatten(1).abs().max(1).values < 1e-4 for said in alone])
    assert torch.equal(by.sum(0), torch.ones(count, dtype=torch.long))
    assert 16 < int(by[0].sum()) < 48  # 32 +- 4; 4 sigma
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    shuffled = NoisedBatch(0, sample[order], timestep[order], sample, sample, {})
    again = LiveTeacher(teachers, [(), ()])(order, shuffled).prediction
    torch.testing.assert_close(again, together[order], atol=1e-4, rtol=0)


def test_teachers_of_another_prediction_type_are_converted(small_teacher, tmp_path):
    """The same v, once as a v model and once through it as eps: the first teacher's type is what comes out."""
    loaded = model_folder.load(small_teacher)
    model_folder.save(tmp_path / "v", loaded.model, DDPMScheduler(prediction_type="v_prediction"))
    v = model_folder.load(tmp_path / "v")
    sample, timestep = torch.randn(8, 1, 28, 28), torch.full((8,), 500)
    batch = NoisedBatch(0, sample, timestep, sample, sample, {})
    said = LiveTeacher([loaded, v], [(), ()])(torch.arange(8), batch).prediction
    with torch.no_grad():
        raw = loaded.model(sample, timestep).sample
    alpha_bar = loaded.scheduler.alphas_cumprod[500]
    as_eps = alpha_bar.sqrt() * raw + (1 - alpha_bar).sqrt() * sample
    for row in range(8):
        distances = [(said[row] - expected[row]).abs().max() for expected in (raw, as_eps)]
        assert min(distances) < 1e-4 < max(distances)


def test_checkpoints_of_a_teacher_teach(small_recipe, small_teacher, other_teacher, quiet, tmp_path):
    run = Run(tmp_path / "run")
    recipe = small_recipe(distill={"teachers": [str(small_teacher), str(other_teacher)], **SHORT})
    prune(run, recipe, quiet)
    distill(run, recipe, quiet)
    found = read_json(run.student / "manifest.json")["inputs"]["teacher"]
    assert found == "+".join(model_folder.fingerprint(folder) for folder in (small_teacher, other_teacher))


def test_a_teacher_of_another_noise_schedule_is_refused(small_recipe, small_teacher, quiet, tmp_path):
    schedule = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    model_folder.save(tmp_path / "cosine", model_folder.load(small_teacher).model, schedule)
    run = Run(tmp_path / "run")
    recipe = small_recipe(distill={"teachers": [str(tmp_path / "cosine")], **SHORT})
    prune(run, recipe, quiet)
    with pytest.raises(BadInputError, match="different noise schedules"):
        distill(run, recipe, quiet)


def test_teachers_that_are_told_something_else_are_refused_before_any_work(small_recipe):
    """Both work on latents of one shape with one schedule, one by class labels, the other by captions."""
    recipe = small_recipe(teacher="fashion-dit", distill={"teachers": ["fashion-mmdit"]})
    with pytest.raises(BadInputError, match=r"told other things: .*pooled.* and class_labels of 10"):
        check_taught(recipe, [])


def test_teachers_with_another_latent_space_are_refused(small_recipe, tmp_path):
    scaled = shutil.copytree(teacher.resolve("fashion-dit").folder, tmp_path / "scaled")
    write_json(scaled / "vae" / "config.json", {**read_json(scaled / "vae" / "config.json"), "scaling_factor": 7.0})
    recipe = small_recipe(teacher="fashion-dit", distill={"teachers": [str(scaled)]})
    with pytest.raises(BadInputError, match=r"different encoders.*`vae`"):
        check_taught(recipe, [])


def test_what_a_config_leaves_to_its_class_is_no_other_latent_space(small_recipe, tmp_path):
    silent = shutil.copytree(teacher.resolve("fashion-dit").folder, tmp_path / "silent")
    config = read_json(silent / "vae" / "config.json")
    write_json(silent / "vae" / "config.json", {key: of for key, of in config.items() if key != "shift_factor"})
    check_taught(small_recipe(teacher="fashion-dit", distill={"teachers": [str(silent)]}), [])


def test_teachers_of_several_types_are_held_to_the_range_of_data(small_teacher, tmp_path):
    """A v teacher that is converted at high noise, where its x0 leaves the range."""
    loaded = model_folder.load(small_teacher)
    model_folder.save(tmp_path / "v", loaded.model, DDPMScheduler(prediction_type="v_prediction"))
    teachers = [model_folder.load(tmp_path / "v"), loaded]
    sample, timestep = torch.randn(8, 1, 28, 28), torch.full((8,), 990)
    batch = NoisedBatch(0, sample, timestep, sample, sample, {})
    free, clipped = (
        convert(
            LiveTeacher(teachers, [(), ()], threshold)(torch.arange(8), batch).prediction,
            sample,
            timestep,
            loaded.scheduler,
            "v_prediction",
            "sample",
        )
        for threshold in ("none", "clip")
    )
    of_eps = (free != clipped).flatten(1).any(1)
    assert 0 < of_eps.sum() < 8
    assert clipped[of_eps].abs().max() <= 1.001 < free[of_eps].abs().max()


def test_what_is_converted_is_not_rounded_to_halves_first(small_teacher):
    """Under bf16, for a student of the teacher's own type and for one of another."""
    loaded = model_folder.load(small_teacher)
    sample, timestep = torch.randn(4, 1, 28, 28), torch.full((4,), 999)
    batch = NoisedBatch(0, sample, timestep, sample, sample, {})
    exact = LiveTeacher([loaded], [()])(torch.arange(4), batch).prediction
    with torch.autocast("cpu", torch.bfloat16):
        rounded, kept = (
            LiveTeacher([loaded], [()], full_precision=full)(torch.arange(4), batch).prediction
            for full in (False, True)
        )
    assert torch.equal(kept, exact) and not torch.equal(rounded, exact)


def test_a_chain_shares_a_folder_of_targets(small_recipe, quiet, tmp_path):
    cache = {"targets": 4, "folder": str(tmp_path / "targets")}
    run, recipe = Run(tmp_path / "run"), small_recipe(prune={"ratio": 0.75}, distill={**CHAIN, "cache": cache})
    prune(run, recipe, quiet)
    pipeline.teach(run, recipe, quiet)
    caches = [tmp_path / "targets", *(tmp_path / "targets" / "assistants" / place for place in "01")]
    teachers = [run.assistant(1).student, roles.folder(run, recipe, "teacher"), run.assistant(0).student]
    for folder, model in zip(caches, teachers, strict=True):
        assert read_json(folder / "manifest.json")["teacher"] == model_folder.fingerprint(model)


def test_the_targets_of_another_teacher_are_refused_before_any_work(small_recipe, other_teacher, quiet, tmp_path):
    cache = {"targets": 4, "folder": str(tmp_path / "targets")}
    first, recipe = Run(tmp_path / "first"), small_recipe(distill={"cache": cache, **SHORT})
    prune(first, recipe, quiet)
    distill(first, recipe, quiet)
    run = Run(tmp_path / "run")
    with pytest.raises(BadInputError, match="made with another teacher"):
        pipeline.prepare(run, small_recipe(teacher=str(other_teacher), distill={"cache": cache, **SHORT}), quiet)
    assert not run.path.exists()


def test_a_chain_is_not_gone_on_with_by_another_recipe(small_recipe, quiet, tmp_path):
    run, recipe = Run(tmp_path / "run"), small_recipe(prune={"ratio": 0.75}, distill=CHAIN)
    pipeline.claim(run, recipe)
    prune(run, recipe, quiet)
    of_first = roles.assistants(run, recipe)[0]
    prune(*of_first, quiet)
    distill(*of_first, quiet)
    pipeline.refuse_other_recipe(run, recipe)
    other = small_recipe(prune={"ratio": 0.75}, distill={**CHAIN, "assistants": [{"ratio": 0.3}]})
    with pytest.raises(BadInputError, match=r"distill\.assistants .*0\.25.* → .*0\.3"):
        pipeline.refuse_other_recipe(run, other)


def test_an_assistant_out_of_reach_is_refused_before_any_work(small_recipe, quiet, tmp_path):
    pruning = {"ratio": None, "params": 10_000}
    distill = {"assistants": [{"ratio": 0.995}], **SHORT}
    run, recipe = Run(tmp_path / "run"), small_recipe(prune=pruning, distill=distill)
    with pytest.raises(BadInputError, match=r"0\.995"):
        pipeline.compress(run, recipe, quiet)
    assert not run.pruned.exists()


def test_teachers_of_other_widths_are_refused_for_features_before_any_work(small_recipe, quiet, tmp_path):
    run = Run(tmp_path / "run")
    recipe = small_recipe(
        distill={"assistants": [{"ratio": 0.25}], "guidance": "dense", "kd": "output,feature", **SHORT}
    )
    with pytest.raises(BadInputError, match="equal widths") as caught:
        pipeline.compress(run, recipe, quiet)
    assert "guidance: last" in caught.value.hint and not run.pruned.exists()


def test_a_chain_is_not_made_longer_under_its_student(small_recipe, quiet, tmp_path):
    """Assistants without steps of their own would be trained on, and be other teachers than the student began with."""
    run, recipe = Run(tmp_path / "run"), small_recipe(prune={"ratio": 0.75}, distill=CHAIN)
    longer = {"training": {**SHORT["training"], "steps": 9}}
    pipeline.claim(run, recipe)
    prune(run, recipe, quiet)
    pipeline.teach(run, recipe, quiet)
    with pytest.raises(BadInputError, match=r"steps 3 → 9"):
        pipeline.refuse_other_recipe(run, small_recipe(prune={"ratio": 0.75}, distill={**CHAIN, **longer}))
    fixed = {**CHAIN, "assistants": [{"ratio": 0.25, "steps": 3}, {"ratio": 0.5, "steps": 2}]}
    write_text(run.recipe, dump(small_recipe(prune={"ratio": 0.75}, distill=fixed)))
    pipeline.refuse_other_recipe(run, small_recipe(prune={"ratio": 0.75}, distill={**fixed, **longer}))


def test_an_unfit_teacher_is_refused_before_images_are_encoded(small_recipe, quiet, tmp_path, monkeypatch):
    run, recipe = Run(tmp_path / "run"), small_recipe()
    prune(run, recipe, quiet)
    monkeypatch.setattr("edgediff.samples.learned", lambda *args, **more: pytest.fail("images were looked at"))
    with pytest.raises(BadInputError, match="other samples"):
        distill(run, small_recipe(distill={"teachers": ["fashion-dit"], **SHORT}), quiet)
    with pytest.raises(BadInputError, match="fp16"):
        half = {"training": {**SHORT["training"], "precision": "fp16"}}
        distill(run, small_recipe(distill=half), quiet)


@pytest.mark.parametrize("assistants", [(), ({"ratio": 0.25},)])
def test_teachers_that_moved_go_on_teaching(assistants, small_recipe, small_teacher, other_teacher, quiet, tmp_path):
    """What they taught first knows them by their hashes, finished or not; other teachers are another recipe's."""
    places = [shutil.copytree(folder, tmp_path / folder.name) for folder in (small_teacher, other_teacher)]
    run = Run(tmp_path / "run")

    def of(folders):
        return small_recipe(distill={"teachers": list(map(str, folders)), "assistants": list(assistants), **SHORT})

    pipeline.prepare(run, of(places), quiet)
    prune(run, of(places), quiet)
    pipeline.teach(run, of(places), quiet)
    moved = [place.rename(tmp_path / f"moved {place.name}") for place in places]
    first = run.assistant(0) if assistants else run
    for _ in range(2):
        pipeline.refuse_other_recipe(run, of(moved))
        for others in (moved[::-1], [*moved[:1], tmp_path / "nowhere"]):
            with pytest.raises(BadInputError, match=r"distill\.teachers"):
                pipeline.refuse_other_recipe(run, of(others))
        shutil.rmtree(first.student, ignore_errors=True)
    assert pipeline.teach(run, of(moved), quiet, resume=True).steps == 3
