"""What the tests of budgets share: a small space of students, and a table made up from known prices."""

import itertools

import torch
from diffusers import UNet2DModel

from edgediff.budgets.costs import CostModel, Works
from edgediff.budgets.space import Space, Student
from edgediff.budgets.table import BlockTime, LatencyTable, Probe, teacher_digest
from edgediff.families import FAMILIES

UNET = FAMILIES["UNet2DModel"]


def small_config(widths=(8, 16, 32), **changes):
    """Return the config of a U-Net whose two removable blocks are a layer and the middle."""
    levels = len(widths)
    settings = {
        **{"sample_size": 16, "in_channels": 1, "out_channels": 1, "layers_per_block": 2, "norm_num_groups": 2},
        **{"block_out_channels": widths},
        **{"down_block_types": ("DownBlock2D",) * levels, "up_block_types": ("UpBlock2D",) * levels},
        **changes,
    }
    with torch.device("meta"):
        return dict(UNet2DModel(**settings).config)


def every_student(space):
    """Return all students that exist."""
    subsets = [
        frozenset(chosen) for n in range(len(space.blocks) + 1) for chosen in itertools.combinations(space.blocks, n)
    ]
    candidates = (Student(widths, removed) for widths in itertools.product(*space.choices) for removed in subsets)
    return [student for student in candidates if space.exists(student)]


PRICES = {"block": 0.05, "elements": 4e-6, "macs": 3e-7, "padded_macs": 2e-7}
"""Milliseconds of a made-up device."""


def price(elements, macs, padded_macs):
    work = {"elements": elements, "macs": macs, "padded_macs": padded_macs}
    return PRICES["block"] + sum(PRICES[name] * amount for name, amount in work.items())


def made_up_table(family, config, students=None, **changes):
    """Return a table of a device with `PRICES`, which holds 50 MiB, three copies of the weights, and activations."""
    space = Space(family, config, blocks=True)
    works = Works(space)
    rows, probes = [], []
    for student in students or space.spread()[:8]:
        found = works(student)
        own = [
            BlockTime(kind=works.kinds[place], elements=e, macs=m, padded_macs=p, ms=price(e, m, p))
            for place, (e, m, p, _) in zip(works.staying(student.removed), found, strict=True)
        ]
        weights, activations = 4 * found[:, 3].sum(), 4 * found[:, 0].max()
        rows += own
        probes.append(
            Probe(
                widths=space.widths(student),
                blocks_removed=sorted(student.removed),
                params=round(weights / 4),
                activation_bytes=round(activations),
                step_ms=sum(row.ms for row in own),
                peak_memory_mib=50 + (3 * weights + 2 * activations) / 2**20,
            )
        )
    values = {
        **{"teacher": "made-up", "teacher_config": teacher_digest(config), "device": "device A"},
        **{"backend": "onnxruntime", "threads": 1, "clock": "processor time", "floor_mib": 50.0},
        **{"sample_shape": family.sample_shape(config), "probes": probes, "blocks": rows},
        **changes,
    }
    return LatencyTable(**values)


def costs_of(space):
    return CostModel(space, made_up_table(space.family, space.config))
