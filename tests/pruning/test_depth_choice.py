"""From importances and a target to blocks: counts, budgets, nested blocks, published rules, and refusals."""

import itertools

import pytest
import torch
from depth_models import DIT
from diffusers import DiTTransformer2DModel

from edgediff.errors import BadInputError
from edgediff.families import DepthCut
from edgediff.metrics.cost import model_cost, parameter_count
from edgediff.pruning import BLOCK_MEASURES, choose_blocks, foreseen_cut, published_cut
from edgediff.pruning.blocks.choice import gone
from edgediff.recipe import DepthConfig

WHOLE = 6


def config(layers=WHOLE):
    with torch.device("meta"):
        return DiTTransformer2DModel(
            **{"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 1, "out_channels": 1, "patch_size": 2},
            **{"num_layers": layers, "sample_size": 8, "num_embeds_ada_norm": 4, "norm_type": "ada_norm_zero"},
        ).config


def named(*indices):
    return tuple(f"transformer_blocks.{i}" for i in indices)


IMPORTANCE = dict(zip(named(*range(WHOLE)), (5.0, 1.0, 4.0, 2.0, 3.0, 0.5), strict=True))


def chosen(importance=IMPORTANCE, family=DIT, teacher=None, **target):
    return choose_blocks(family, teacher or config(), DepthConfig(**target), importance)


def params(removed):
    return parameter_count(DIT.build(DIT.without_blocks(config(), removed).config, "meta"))


class Nested(type(DIT)):
    """Two layers of two blocks each and a lone one, in a config that only counts them; layer 1 must stay if 0 goes."""

    def blocks(self, config):
        return ("a", "a.0", "a.1", "b+c", "b.0", "c.0", "d")

    def without_blocks(self, config, removed):
        if {"a", "b+c"} <= set(removed):
            raise BadInputError("one layer has to stay")
        return DepthCut(dict(config), {})


@pytest.mark.parametrize(
    ("target", "removed"),
    [
        ({"remove": 0.5}, (1, 3, 5)),
        ({"keep": 4}, (1, 5)),
        ({"keep": 6}, ()),
        ({"remove": 0}, ()),
        ({"remove": 0.4}, (1, 5)),  # 2.4 blocks
        ({"remove": 0.75}, (1, 2, 3, 4, 5)),  # 4.5 blocks
    ],
    ids=str,
)
def test_the_least_important_blocks_go_in_the_order_in_which_they_run(target, removed):
    assert chosen(**target) == named(*removed)


def test_equal_blocks_go_from_the_first_on():
    assert chosen(dict.fromkeys(IMPORTANCE, 1.0), keep=4) == named(0, 1)


@pytest.mark.parametrize(
    ("target", "message", "hint"),
    [
        ({"keep": 0}, "no student of this teacher lacks 6 of its 6 blocks", "nearest: 0.8333 (5 of 6 blocks)"),
        ({"remove": 0.95}, "lacks 6 of its 6 blocks", "nearest: 0.8333 (5 of 6 blocks)"),
        ({"remove": 0.05}, "removing 0.05 of 6 blocks removes none", "nearest: 0.1667 (1 of 6 blocks)"),
        ({"keep": 7}, "more blocks to keep than this teacher can lose: 7", "it has 6"),
        ({"params": 10}, "no student of this teacher has 10 parameters", "reachable: "),
        ({"macs": 10**12}, "no student of this teacher has 1,000,000,000,000 MACs", "reachable: "),
    ],
    ids=str,
)
def test_targets_out_of_reach_come_with_the_nearest(target, message, hint):
    for found in (chosen, lambda **target: foreseen_cut(DIT, config(), DepthConfig(**target), seed=0)):
        with pytest.raises(BadInputError, match=message) as error:
            found(**target)
        assert hint in error.value.hint


@pytest.mark.parametrize("by", ["laptop_diff", "oracle"])
def test_a_budget_is_met_with_as_few_blocks_as_it_takes(by):
    assert chosen(params=params(named(1, 5)), by=by) == named(1, 5)
    assert chosen(params=params(named(1, 5)) - 1, by=by) == named(1, 3, 5)
    assert chosen(params=params(()), by=by) == ()
    limit = model_cost(DIT, DIT.without_blocks(config(), named(1, 5)).config).macs
    assert chosen(macs=limit, by=by) == named(1, 5)
    assert chosen(macs=limit - 1, by=by) == named(1, 3, 5)


class Unequal(type(DIT)):
    """Block i is made of i + 1 layers of the stock model, so that blocks differ in cost."""

    def blocks(self, config):
        return ("one", "two", "three")

    def without_blocks(self, config, removed):
        left = WHOLE - sum({"one": 1, "two": 2, "three": 3}[block] for block in removed)
        if not left:
            raise BadInputError("no block would stay")
        return DIT.without_blocks(config, named(*range(left, WHOLE)))


def budget(layers):
    return {"params": parameter_count(DIT.build(config(layers), "meta"))}


def test_laptop_diff_weighs_distortion_by_what_a_block_costs():
    importance = {"one": 2.0, "two": 3.0, "three": 3.0}
    assert chosen(importance, Unequal(), by="laptop_diff", **budget(3)) == ("three",)
    assert chosen(importance, Unequal(), by="oracle", **budget(3)) == ("one", "two")


def test_blocks_that_the_budget_turns_out_to_have_are_given_back():
    """The cheap block goes first; with the expensive one behind it, it was not needed."""
    importance = {"one": 0.1, "two": 9.0, "three": 1.0}
    assert chosen(importance, Unequal(), by="laptop_diff", **budget(3)) == ("three",)
    assert chosen(importance, Unequal(), by="laptop_diff", **budget(2)) == ("one", "three")


def test_laptop_diff_is_as_good_as_any_choice_of_blocks_of_one_cost():
    for seed in range(2):
        draws = torch.rand(WHOLE, generator=torch.Generator().manual_seed(seed)).tolist()
        importance = dict(zip(IMPORTANCE, draws, strict=True))
        best = min(itertools.combinations(importance, 3), key=lambda some: sum(importance[block] for block in some))
        assert chosen(importance, params=params(best), by="laptop_diff") == best


def test_a_block_inside_one_that_went_has_gone_with_it():
    assert gone(Nested().blocks({}), ["a"]) == {"a", "a.0", "a.1"}
    assert gone(Nested().blocks({}), ["b+c", "a.1"]) == {"b+c", "b.0", "c.0", "a.1"}
    assert gone(["ab", "a.0+b.0"], ["a"]) == set()  # `a` is no part of `ab`, and b.0 stays


def test_nested_blocks_count_once_and_conflicting_ones_are_passed_over():
    importance = {"a": 1.0, "a.0": 0.5, "a.1": 3.0, "b+c": 2.0, "b.0": 6.0, "c.0": 5.0, "d": 4.0}
    choose = lambda keep: chosen(importance, Nested(), {"x": 1}, keep=keep, by="oracle")  # noqa: E731
    assert choose(6) == ("a.0",)  # `a` would take three
    assert choose(4) == ("a", "a.0")  # all three of a; a.0 went first
    assert choose(3) == ("a", "a.0", "d")  # not b+c beside a
    with pytest.raises(BadInputError) as error:
        choose(0)
    assert error.value.hint == "nearest: 0.8571 (6 of 7 blocks)"


def test_importance_per_block_decides_for_laptop_diff_between_a_layer_and_what_is_in_it():
    importance = {"a": 7.0, "a.0": 3.0, "a.1": 3.0, "b+c": 9.0, "b.0": 9.0, "c.0": 9.0, "d": 6.0}
    assert chosen(importance, Nested(), {"x": 1}, keep=4, by="laptop_diff") == ("a",)
    assert chosen(importance, Nested(), {"x": 1}, keep=4, by="oracle") == ("a.0", "a.1", "d")


class Ruled(type(DIT)):
    def depth_rules(self, config):
        half = [name for i, name in enumerate(self.blocks(config)) if i % 2]
        return {"half": lambda config: self.without_blocks(config, half)}


def test_a_published_rule_gives_its_cut():
    cut = published_cut(Ruled(), config(), "half")
    assert cut == DIT.without_blocks(config(), named(1, 3, 5))
    assert foreseen_cut(Ruled(), config(), DepthConfig(rule="half"), seed=0) == cut


def test_a_rule_that_does_not_fit_comes_with_those_that_do():
    with pytest.raises(BadInputError, match="depth rule does not fit this teacher: bk_tiny") as error:
        published_cut(Ruled(), config(), "bk_tiny")
    assert error.value.hint == "rules that do: half"
    with pytest.raises(BadInputError) as error:
        published_cut(DIT, config(), "bk_tiny")
    assert "no published rule does" in error.value.hint


@pytest.mark.parametrize("by", [*BLOCK_MEASURES, "tinyfusion"])
def test_a_config_foretells_how_many_blocks_go_and_which_where_no_weights_are_looked_at(by):
    cut = foreseen_cut(DIT, config(), DepthConfig(keep=4, by=by), seed=7)
    assert cut.config["num_layers"] == 4
    if by == "first":
        assert cut == DIT.without_blocks(config(), named(0, 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs exactly one of remove, keep, params, macs, rule; given: none"),
        ({"remove": 0.5, "rule": "bk_tiny"}, "given: remove, rule"),
        ({"params": 5, "by": "tinyfusion"}, "tinyfusion chooses a number of blocks: give remove or keep, not params"),
        ({"macs": 5, "by": "evenly"}, "evenly chooses a number of blocks"),
        ({"remove": 1.0}, "less than 1"),
        ({"keep": 2, "by": "tinyfusion", "tinyfusion": {"temperature": [4, 0]}}, "greater than 0"),
    ],
)
def test_contradictory_depth_configs_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DepthConfig(**values)


def test_every_measure_has_its_name_in_the_recipe():
    for name in BLOCK_MEASURES:
        assert DepthConfig(keep=1, by=name).by == name
    with pytest.raises(ValueError, match="laptop_diff"):
        DepthConfig(keep=1, by="guess")
