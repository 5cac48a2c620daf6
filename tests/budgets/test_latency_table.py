"""Prediction from a table with known prices, its file and refusals, and a real measurement of a tiny teacher."""

import json

import numpy as np
import pytest
from budget_models import every_student, price, small_config
from diffusers import DDPMScheduler, DiTTransformer2DModel
from small_transformers import SMALL_DIT

from edgediff import model_folder
from edgediff.artifacts import read_json, write_result
from edgediff.budgets.costs import CostModel, Works
from edgediff.budgets.measure import probes
from edgediff.budgets.space import Space
from edgediff.budgets.table import LatencyTable, read_table
from edgediff.errors import BadInputError
from edgediff.profile import profile


def test_measured_students_are_predicted_as_they_were_measured(space, table):
    cost = CostModel(space, table)
    assert cost(space.teacher)["latency_ms"] == pytest.approx(table.teacher_ms, rel=1e-3)


def test_students_in_between_are_predicted_from_a_handful(space, table):
    # The prices are linear in the work, as the fit is: what is left is the correction, which then has nothing to do.
    cost, works = CostModel(space, table), Works(space)
    students = every_student(space)
    for student in students[:: len(students) // 20]:
        real = sum(price(*row[:3]) for row in works(student))
        assert cost(student)["latency_ms"] == pytest.approx(real, rel=0.02)


def test_what_one_kind_costs_more_is_found(space, table):
    works = Works(space)
    slow = works.kinds[1]
    rows = [row.model_copy(update={"ms": row.ms * (3 if row.kind == slow else 1)}) for row in table.blocks]
    steps, left = [], list(rows)
    for student in probes(space, works):
        own, left = left[: len(works(student))], left[len(works(student)) :]
        steps.append(sum(row.ms for row in own))
    measured = [probe.model_copy(update={"step_ms": ms}) for probe, ms in zip(table.probes, steps, strict=True)]
    slower = CostModel(space, table.model_copy(update={"blocks": rows, "probes": measured}))
    extra = sum(2 * row.ms for row in table.blocks[: len(works.kinds)] if row.kind == slow)
    assert extra and slower(space.teacher)["latency_ms"] == pytest.approx(table.teacher_ms + extra, rel=0.01)


def test_a_step_that_takes_longer_than_its_blocks_is_predicted_as_it_was_measured(space, table):
    # As where small blocks are slowed down by what runs between them: the sum of blocks is off, the step is not.
    _, near, *_ = probes(space, Works(space))
    steps = [probe.step_ms * (1.2 if probe.widths == space.widths(near) else 1.0) for probe in table.probes]
    measured = [probe.model_copy(update={"step_ms": ms}) for probe, ms in zip(table.probes, steps, strict=True)]
    cost = CostModel(space, table.model_copy(update={"probes": measured}))
    assert cost(near)["latency_ms"] == pytest.approx(steps[1], rel=0.01)
    assert cost(space.teacher)["latency_ms"] == pytest.approx(table.teacher_ms, rel=0.01)


def test_memory_is_what_a_process_takes_weights_and_activations(space, table):
    cost = CostModel(space, table)
    for student in every_student(space)[::40]:
        rows = Works(space)(student)
        real = 50 * 2**20 + 3 * 4 * rows[:, 3].sum() + 2 * 4 * rows[:, 0].max()
        assert cost(student)["memory_mb"] == pytest.approx(real / 1e6, rel=1e-3)


def test_probes_cover_every_kind_and_every_axis(space):
    works = Works(space)
    chosen = probes(space, works)
    assert chosen[0] == space.teacher and len(set(chosen)) == len(chosen) >= 5
    for student in chosen:
        assert space.exists(student)
        assert {works.kinds[place] for place in works.staying(student.removed)} == set(works.kinds)
    for axis, widest in enumerate(space.teacher.widths):
        others = [i for i in range(len(space.axes)) if i != axis]
        assert any(
            student.widths[axis] == widest and all(student.widths[i] <= space.teacher.widths[i] / 2 for i in others)
            for student in chosen
        )


def written(path, table):
    write_result(path, table.model_dump(mode="json"), stage="profile", config={}, inputs={})
    return path


def test_a_profile_comes_back_as_it_was_written(space, table, tmp_path):
    assert read_table(written(tmp_path / "profile.json", table), space.config) == table


BROKEN = {
    "missing": (lambda path: path.unlink(), "profile not found"),
    "no JSON": (lambda path: path.write_text("{"), "not a profile"),
    "another file": (lambda path: path.write_text(json.dumps({"rows": []})), "not a profile"),
    "no numbers": (lambda path: path.write_text(path.read_text().replace('"threads": 1', '"threads": "x"')), "threads"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_unreadable_profile_is_named(name, space, table, tmp_path):
    damage, said = BROKEN[name]
    path = written(tmp_path / "profile.json", table)
    damage(path)
    with pytest.raises(BadInputError, match=said) as error:
        read_table(path, space.config)
    assert "profile.json" in error.value.message and "edgediff profile" in error.value.hint


def test_a_profile_of_another_teacher_is_refused(table, tmp_path):
    path = written(tmp_path / "profile.json", table)
    with pytest.raises(BadInputError, match="profile is of another teacher, made-up"):
        read_table(path, small_config((8, 16, 48)))


def test_a_real_profile_of_a_tiny_teacher(tmp_path, quiet):
    folder = tmp_path / "teacher"
    model_folder.save(folder, DiTTransformer2DModel(**SMALL_DIT), DDPMScheduler())
    table = profile(str(folder), tmp_path / "profile.json", 1, quiet)
    family = model_folder.load(folder).family
    space = Space(family, model_folder.load(folder).model.config, blocks=True)
    kinds = set(Works(space).kinds)
    assert {block.kind for block in table.blocks} == kinds
    assert all(block.ms > 0 for block in table.blocks)
    assert len(table.probes) > 2
    # The parts of a probe are scaled to add up to the whole.
    assert sum(b.ms for b in table.blocks) == pytest.approx(sum(p.step_ms for p in table.probes), rel=1e-6)
    assert all(probe.peak_memory_mib > 0 for probe in table.probes) and table.floor_mib > 0
    costs = CostModel(space, table)(space.teacher)
    assert np.isfinite([costs["latency_ms"], costs["memory_mb"]]).all()
    made = read_json(tmp_path / "profile.json")["made"]
    assert profile(str(folder), tmp_path / "profile.json", 1, quiet) == table  # not measured again
    assert read_json(tmp_path / "profile.json")["made"] == made
    assert LatencyTable.model_validate(table.model_dump()) == table
