"""Time of the distillation losses, forward and backward, side by side on one core.

    taskset -c 1 python benchmarks/loss_speed.py

Rounds visit every loss once; given are the median processor milliseconds and the median ratio to the output loss.
Feature losses compare one pair of maps of 64 channels at half the resolution. Then the share of PLACE in a training
step of the paper's CelebA pair: a teacher of 78.7M parameters and a student without 90 % of its channels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from edgediff.artifacts import made, write_json
from edgediff.families import FAMILIES
from edgediff.losses import LOSSES, Loss, diffusion, place
from edgediff.metrics.cost import parameter_count
from edgediff.pruning import widths_for_ratio

RESULT = Path(__file__).parent / "results" / "loss-speed.json"
SHAPES = {"64x1x28x28": (64, 1, 28, 28), "96x3x64x64": (96, 3, 64, 64)}
ROUNDS = {"64x1x28x28": 100, "96x3x64x64": 15}
WARMUP = 3
BATCH, TIMED_BATCH, STEP_ROUNDS = 96, 2, 5
CELEBA = {
    **{"sample_size": 64, "layers_per_block": 2, "norm_num_groups": 32, "attention_head_dim": None},
    **{"freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "norm_eps": 1e-6},
    "block_out_channels": (128, 256, 256, 256, 512),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}


def pair(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    teacher = torch.randn(shape)
    return (teacher + 0.3 * torch.randn(shape)).requires_grad_(), teacher


def seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds of the only thread: others on the machine do not count."""
    began = time.process_time()
    work()
    return time.process_time() - began


def ready(loss: Loss, shape: tuple[int, ...]) -> Callable[[], None]:
    """Return a forward and backward of the loss over inputs of its own."""
    batch, _, height, width = shape
    student, teacher = pair(shape if loss.kind == "prediction" else (batch, 64, height // 2, width // 2))

    def work() -> None:
        student.grad = None
        if loss.kind == "prediction":
            loss.function(student, teacher, reduction="mean").total.mean().backward()
        else:
            loss.function([student], [teacher], reduction="mean").mean().backward()

    return work


def losses(label: str) -> dict[str, dict[str, float]]:
    works = {name: ready(loss, SHAPES[label]) for name, loss in LOSSES.items()}
    taken: dict[str, list[float]] = {name: [] for name in works}
    for index in range(WARMUP + ROUNDS[label]):
        for name, work in works.items():
            took = seconds(work)
            if index >= WARMUP:
                taken[name].append(took)
    return {
        name: {
            "median_ms": 1000 * statistics.median(times),
            "min_ms": 1000 * min(times),
            "ratio_to_output": statistics.median(a / b for a, b in zip(times, taken["output"], strict=True)),
        }
        for name, times in taken.items()
    }


def training_step() -> dict[str, Any]:
    """Return what the parts of one step take; the networks at a small batch, scaled up linearly."""
    family = FAMILIES["UNet2DModel"]
    teacher = UNet2DModel(**CELEBA).eval()
    widths = widths_for_ratio(family, teacher.config, 0.9)
    student = family.build(family.student_config(teacher.config, widths), "cpu")
    sample, timestep = torch.randn(TIMED_BATCH, 3, 64, 64), torch.arange(TIMED_BATCH)
    compared = pair((BATCH, 3, 64, 64))

    def teach() -> None:
        with torch.no_grad():
            teacher(sample, timestep)

    def learn() -> None:
        diffusion(student(sample, timestep).sample, sample, reduction="mean").mean().backward()

    def compare() -> None:
        compared[0].grad = None
        place(*compared, reduction="mean").total.mean().backward()

    works = {"teacher": teach, "student": learn, "place": compare}
    taken: dict[str, list[float]] = {name: [] for name in works}
    for index in range(1 + STEP_ROUNDS):
        for name, work in works.items():
            took = seconds(work)
            if index:
                taken[name].append(took)
    median = {name: statistics.median(times) for name, times in taken.items()}
    scaled = (median["teacher"] + median["student"]) * BATCH / TIMED_BATCH
    return {
        "teacher_params": parameter_count(teacher),
        "student_params": parameter_count(student),
        "batch": BATCH,
        "timed_batch": TIMED_BATCH,
        "rounds": STEP_ROUNDS,
        "how": "median processor seconds; teacher forward, and student forward and backward with the diffusion loss, "
        "at the timed batch; PLACE at the whole batch; networks scaled linearly to it; no optimizer step",
        "teacher_seconds_timed_batch": median["teacher"],
        "student_seconds_timed_batch": median["student"],
        "place_seconds_whole_batch": median["place"],
        "step_seconds_whole_batch": scaled + median["place"],
        "place_share": median["place"] / (scaled + median["place"]),
        "place_share_with_cached_targets": median["place"]
        / (median["student"] * BATCH / TIMED_BATCH + median["place"]),
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shapes = {label: losses(label) for label in SHAPES}
    for label, rows in shapes.items():
        for name, row in rows.items():
            print(f"{label}  {name:<15} {row['median_ms']:8.2f} ms  {row['ratio_to_output']:6.1f} x output")
    step = training_step()
    print(f"PLACE in a step of the CelebA pair: {100 * step['place_share']:.2f} %")
    result = {"made": made(), "rounds": ROUNDS, "threads": 1, "shapes": shapes, "training_step": step}
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
