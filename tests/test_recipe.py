"""Recipes: defaults, overrides, and how every kind of mistake is worded."""

import pytest
import yaml

from edgediff.errors import BadInputError
from edgediff.losses import LOSSES
from edgediff.recipe import (
    KD_LOSSES,
    AutoencoderRecipe,
    Recipe,
    TeacherRecipe,
    apply_overrides,
    check,
    dump,
    find,
    loss_words,
    objective_words,
    packaged,
    read_yaml,
    recipes_folder,
)

MINIMAL = {"teacher": "fashion-ddpm", "prune": {"ratio": 0.5}}


def message(values):
    with pytest.raises(BadInputError) as caught:
        check(values, Recipe)
    return str(caught.value)


def test_a_dumped_recipe_is_complete_and_reads_back_equal():
    recipe = check(MINIMAL, Recipe)
    plain = yaml.safe_load(dump(recipe))
    assert plain["distill"]["training"]["learning_rate"] == recipe.distill.training.learning_rate
    assert check(plain, Recipe) == recipe


def test_overrides_reach_any_depth_and_are_read_as_yaml():
    values = apply_overrides(MINIMAL, ["distill.training.steps=7", "distill.kd=lift", "benchmark.batch_sizes=[1, 2]"])
    recipe = check(values, Recipe)
    assert (recipe.distill.training.steps, recipe.distill.kd, recipe.benchmark.batch_sizes) == (7, {"lift": 1}, (1, 2))
    assert "distill" not in MINIMAL


@pytest.mark.parametrize("override", ["distill", "=3"])
def test_a_malformed_override_is_named(override):
    with pytest.raises(BadInputError, match=override):
        apply_overrides(MINIMAL, [override])


def test_an_unknown_key_comes_with_the_nearest_one():
    of_depth = {**MINIMAL, "prune": {"depth": {"kep": 2}}}
    assert "prune.depth.kep: unknown key, did you mean: keep" in message(of_depth)
    assert "distil: unknown key, did you mean: distill" in message({**MINIMAL, "distil": {}})
    found = message({**MINIMAL, "distill": {"training": {"learningrate": 1}}})
    assert "distill.training.learningrate: unknown key, did you mean: learning_rate" in found


@pytest.mark.parametrize("section", ["data", "distill", "export", "build", "benchmark", "evaluate"])
def test_a_section_without_keys_is_one_of_defaults(section):
    assert check({**MINIMAL, section: None}, Recipe) == check(MINIMAL, Recipe)


def test_an_override_fills_a_section_without_keys():
    values = apply_overrides({**MINIMAL, "evaluate": None}, ["evaluate.num_images=5"])
    assert check(values, Recipe).evaluate.num_images == 5
    assert check({**MINIMAL, "prune": {"ratio": 0.5, "depth": None}}, Recipe).prune.depth is None


def test_a_value_where_a_section_belongs():
    assert "distill: not a section of keys: place" in message({**MINIMAL, "distill": "place"})
    with pytest.raises(BadInputError, match=r"^teacher: not a section of keys: fashion-ddpm$"):
        apply_overrides(MINIMAL, ["teacher.name=3"])
    with pytest.raises(BadInputError, match=r"^prune: not a section of keys: 0\.5$"):
        apply_overrides({**MINIMAL, "prune": 0.5}, ["prune.ratio=0.25"])


def test_as_many_images_as_every_score_needs():
    assert "evaluate.num_images: must be greater than or equal to 4: 3" in message(
        {**MINIMAL, "evaluate": {"num_images": 3}}
    )


def test_an_autoencoder_is_not_compiled_and_that_is_said():
    values = {"name": "vae", "config": {}, "training": {"compile": True}}
    with pytest.raises(BadInputError, match=r"training\.compile: autoencoders are trained as they are"):
        check(values, AutoencoderRecipe)


def test_all_problems_are_listed_at_once():
    found = message(
        {"prune": {"ratio": 1.5}, "distill": {"kd": "plaice", "group_sise": 4}, "evaluate": {"num_images": "many"}}
    )
    assert "5 problems" in found
    for part in ("teacher: missing", "prune.ratio", "distill.kd", "group_sise", "evaluate.num_images"):
        assert part in found


@pytest.mark.parametrize(
    ("given", "losses", "words"),
    [
        ("place", {"place": 1}, "place"),
        ("output,feature=0.1", {"output": 1, "feature": 0.1}, "output,feature=0.1"),
        ("place,feature=1e-6", {"place": 1, "feature": 1e-6}, "place,feature=1e-06"),
        ({"output": 1, "feature": "1e-6"}, {"output": 1, "feature": 1e-6}, "output,feature=1e-06"),
        (["output", "place=2"], {"output": 1, "place": 2}, "output,place=2"),
        ({"dist": 3}, {"dist": 3}, "dist=3"),
        ("output+feature", {"output": 1, "feature": 1}, "output,feature"),
        ("bk_sdm", {"output": 1, "feature": 1}, "output,feature"),
        ("none", {}, "none"),
    ],
)
def test_losses_are_names_with_weights(given, losses, words):
    distill = check({**MINIMAL, "distill": {"kd": given}}, Recipe).distill
    assert distill.kd == losses and loss_words(distill.kd) == words
    assert check({**MINIMAL, "distill": {"kd": words}}, Recipe).distill.kd == losses


def test_a_preset_sets_more_than_losses_where_nothing_else_was_asked_for():
    def taught(**distill):
        found = check({**MINIMAL, "distill": distill}, Recipe).distill
        return found.kd, found.student_prediction, found.timestep_weighting

    assert taught(kd="angular") == ({"output": 1}, "v_prediction", "angular")
    assert taught(kd=["angular", "feature=0.1"])[1:] == ("v_prediction", "angular")
    assert taught(kd="angular", timestep_weighting="min_snr") == ({"output": 1}, "v_prediction", "min_snr")
    assert taught(kd="angular", student_prediction="sample")[1:] == ("sample", "angular")
    assert taught(kd="output")[1:] == (None, "uniform")


@pytest.mark.parametrize(
    ("kd", "words"),
    [("place", "kd place"), ("angular", "kd output, v_prediction, angular timesteps"), ("none", "kd none")],
)
def test_what_a_student_learns_is_worded_with_what_a_preset_set(kd, words):
    assert objective_words(check({**MINIMAL, "distill": {"kd": kd}}, Recipe).distill) == words


def test_a_mistake_of_two_sections_together_is_said_without_an_empty_key():
    assert message({**MINIMAL, "data": {"random_conditioning": 0.5}, "distill": {"kd": "none"}}).startswith(
        "recipe: data.random_conditioning"
    )


@pytest.mark.parametrize(("ratios", "words"), [([0.25], "1 teacher assistant"), ([0.25, 0.4], "2 teacher assistants")])
def test_what_a_student_learns_is_worded_with_its_teacher_assistants(ratios, words):
    assistants = [{"ratio": ratio} for ratio in ratios]
    assert (
        objective_words(check({**MINIMAL, "distill": {"assistants": assistants}}, Recipe).distill)
        == f"kd place, {words}"
    )


def test_a_preset_reaches_a_recipe_with_every_default_written_out():
    complete = check(MINIMAL, Recipe).model_dump(mode="json")
    complete["distill"]["kd"] = "angular"
    assert check(complete, Recipe) == check({**MINIMAL, "distill": {"kd": "angular"}}, Recipe)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), ".inf"])
def test_numbers_are_finite(value):
    """A manifest is JSON, which knows no other: the training would be lost when its student is written."""
    assert "grad_clip" in message({**MINIMAL, "distill": {"training": {"grad_clip": value}}})


@pytest.mark.parametrize("kd", ["place", "lift,feature", "place,dist"])
def test_residuals_of_a_fit_alone_leave_the_scale_of_predictions_open(kd):
    distill = {"kd": kd, "diffusion_weight": 0, "place": {"terms": "fine"}}
    assert "the fine term alone" in message({**MINIMAL, "distill": distill})
    check({**MINIMAL, "distill": {**distill, "kd": f"{kd},output"}}, Recipe)
    check({**MINIMAL, "distill": {**distill, "diffusion_weight": 0.1}}, Recipe)


@pytest.mark.parametrize("kd", ["dist", "dist,feature=2"])
def test_correlations_alone_leave_the_scale_of_predictions_open(kd):
    assert "compares correlations only" in message({**MINIMAL, "distill": {"kd": kd, "diffusion_weight": 0}})
    check({**MINIMAL, "distill": {"kd": f"{kd},output", "diffusion_weight": 0}}, Recipe)


@pytest.mark.parametrize("kd", ["feature", "attention,masked_feature=2"])
def test_losses_of_feature_maps_do_not_train_the_last_layers(kd):
    assert "looks at feature maps only" in message({**MINIMAL, "distill": {"kd": kd, "diffusion_weight": 0}})
    check({**MINIMAL, "distill": {"kd": f"{kd},output", "diffusion_weight": 0}}, Recipe)


def test_exchanged_conditions_need_somebody_who_knows_what_they_ask_for():
    exchanged = {"data": {"random_conditioning": 0.5}}
    assert "kd is none" in message({**MINIMAL, **exchanged, "distill": {"kd": "none"}})
    always = {"data": {"random_conditioning": 1}, "distill": {"kd": "feature"}}
    assert "leaves no sample to the data term" in message({**MINIMAL, **always})
    assert "random_conditioning, which is 0" in message({**MINIMAL, "data": {"random_captions": "captions.txt"}})
    check({**MINIMAL, **exchanged}, Recipe)


def test_a_loss_that_turns_negative_is_not_divided_by_its_mean():
    found = message({**MINIMAL, "distill": {"timestep_weighting": "normalised", "place": {"fine_weight": "learnable"}}})
    assert "fine_weight" in found and "normalised" in found
    unused = {"kd": "output", "timestep_weighting": "normalised", "place": {"fine_weight": "learnable"}}
    check({**MINIMAL, "distill": unused}, Recipe)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("plaice", "did you mean: place"),
        ("output,featur=1", "did you mean: feature"),
        ("place=-1", "the weight of place must be a number above 0: -1"),
        ("place=0", "must be a number above 0"),
        ("place=x", "the weight of place must be a number above 0: x"),
        ({"place": "much"}, "the weight of place"),
        ("angular=0.5", "angular is a preset and takes no weight; its losses do: output"),
        ({"bk_sdm": 2}, "its losses do: output,feature"),
        ("place=[", "the weight of place must be a number above 0: ["),
        ("place=", "the weight of place must be a number above 0"),
        ({"place": True}, "the weight of place must be a number above 0: True"),
        ("place,output,place=2", "place is given twice"),
        ("output=3,bk_sdm", "output is given twice"),
        ("output,", "a loss has no name"),
        ("output,,feature=0.1", "commas stand between names, without spaces"),
        ("place,none", "none is no loss beside others, leave it or them out: place,none"),
        (["none", "place"], "none is no loss beside others"),
    ],
)
def test_wrong_losses_are_refused(given, found):
    assert found in message({**MINIMAL, "distill": {"kd": given}})


def test_nothing_to_learn_from():
    assert "nothing to learn from" in message({**MINIMAL, "distill": {"kd": "none", "diffusion_weight": 0}})


def test_the_names_of_losses_are_those_that_exist():
    assert set(KD_LOSSES) == set(LOSSES)


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5])
def test_a_ratio_outside_its_range_is_refused(ratio):
    assert "prune.ratio" in message({**MINIMAL, "prune": {"ratio": ratio}})


def test_exactly_one_pruning_target():
    assert "exactly one" in message({**MINIMAL, "prune": {}})
    assert "ratio, params" in message({**MINIMAL, "prune": {"ratio": 0.5, "params": 1000}})


@pytest.mark.parametrize(
    ("text", "value"), [("250k", 250_000), ("1.5M", 1_500_000), ("2G", 2_000_000_000), (7, 7), ("250.0", 250)]
)
def test_counts_have_suffixes(text, value):
    assert check({**MINIMAL, "prune": {"params": text}}, Recipe).prune.params == value


@pytest.mark.parametrize("text", ["somek", "64q", "many", "infk", "1.5", ""])
def test_a_count_that_is_none_is_refused(text):
    assert message({**MINIMAL, "prune": {"params": text}}).endswith(
        f": prune.params: needs a number such as 250000, 250k or 1.5M: {text}"
    )


@pytest.mark.parametrize(
    ("ratios", "prune", "found"),
    [
        ([0.3, 0.2], {"ratio": 0.5}, "assistants fall in size, so their ratios must rise: 0.3, 0.2"),
        ([0.3, 0.3], {"params": 1000}, "their ratios must rise: 0.3, 0.3"),
    ],
)
def test_assistants_fall_in_size(ratios, prune, found):
    distill = {"assistants": [{"ratio": ratio} for ratio in ratios]}
    assert found in message({**MINIMAL, "prune": prune, "distill": distill})


def test_who_teaches_is_said_once_and_means_something():
    assert "there are none: add some" in message({**MINIMAL, "distill": {"guidance": "dense"}})
    for nobody in ({"assistants": [{"ratio": 0.3}]}, {"teachers": ["a"]}):
        assert "teach the student, and kd is none" in message({**MINIMAL, "distill": {"kd": "none", **nobody}})
    assert "teachers: b is given twice" in message({**MINIMAL, "distill": {"teachers": ["a", "b", "b"]}})


def test_batch_sizes_of_an_engine_must_be_ordered():
    assert "min_batch <= opt_batch" in message({**MINIMAL, "build": {"min_batch": 4, "opt_batch": 2}})


def test_exponents_without_a_dot_are_numbers():
    """YAML 1.1 reads 1e-4 as text; users mean the number."""
    values = apply_overrides(MINIMAL, ["distill.training.learning_rate=1e-4"])
    assert check(values, Recipe).distill.training.learning_rate == 1e-4


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(BadInputError, match="not found"):
        read_yaml(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    with pytest.raises(BadInputError, match="cannot be read"):
        read_yaml(broken)
    broken.write_text("just words")
    with pytest.raises(BadInputError, match="not a mapping"):
        read_yaml(broken)


@pytest.mark.parametrize("name", sorted(packaged()))
def test_every_packaged_recipe_is_valid_and_opens_with_its_command(name):
    path, about = packaged()[name]
    check(read_yaml(path), Recipe, name)
    assert path.read_text().startswith(f"# edgediff compress --recipe {name} ")
    assert about


@pytest.mark.parametrize("path", sorted((recipes_folder() / "teachers").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_teacher_recipe_is_valid(path):
    assert check(read_yaml(path), TeacherRecipe, path.name).name == path.stem


@pytest.mark.parametrize("path", sorted((recipes_folder() / "autoencoders").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_autoencoder_recipe_is_valid(path):
    assert check(read_yaml(path), AutoencoderRecipe, path.name).name == path.stem


def test_an_unknown_recipe_comes_with_the_nearest_one():
    with pytest.raises(BadInputError) as caught:
        find("fashion-ddpm-demmo")
    assert "did you mean: fashion-ddpm-demo" in caught.value.hint
