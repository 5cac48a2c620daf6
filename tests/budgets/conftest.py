"""A small teacher's students, and a profile of them on a made-up device."""

import pytest
from budget_models import UNET, made_up_table, small_config

from edgediff.budgets.costs import Works
from edgediff.budgets.measure import probes
from edgediff.budgets.space import Space


@pytest.fixture(scope="module")
def space():
    return Space(UNET, small_config(), blocks=True)


@pytest.fixture(scope="module")
def table(space):
    return made_up_table(UNET, space.config, probes(space, Works(space)))
