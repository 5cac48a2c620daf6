"""Time of the distillation losses, forward and backward, side by side on one core.

    taskset -c 0 python benchmarks/loss_speed.py

Rounds visit every loss once; printed are the median milliseconds and the median ratio to the output loss.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from edgediff.artifacts import made, write_json
from edgediff.losses import KD

RESULT = Path(__file__).parent / "results" / "loss-speed.json"
SHAPES = {"64x1x28x28": (64, 1, 28, 28), "96x3x64x64": (96, 3, 64, 64)}
ROUNDS = 50


def seconds(name: str, student: torch.Tensor, teacher: torch.Tensor) -> float:
    student.grad = None
    began = time.perf_counter()
    KD[name](student, teacher, group_size=16, reduction="mean").total.backward()
    return time.perf_counter() - began


def main() -> None:
    torch.set_num_threads(1)
    names = [name for name, loss in KD.items() if loss is not None]
    result = {"made": made(), "rounds": ROUNDS, "threads": 1, "shapes": {}}
    for label, shape in SHAPES.items():
        teacher = torch.randn(shape)
        student = (teacher + 0.3 * torch.randn(shape)).requires_grad_()
        taken = {name: [] for name in names}
        for index in range(ROUNDS + 5):
            for name in names:
                took = seconds(name, student, teacher)
                if index >= 5:
                    taken[name].append(took)
        result["shapes"][label] = {
            name: {
                "median_ms": 1000 * statistics.median(taken[name]),
                "ratio_to_output": statistics.median(a / b for a, b in zip(taken[name], taken["output"], strict=True)),
            }
            for name in names
        }
        for name, row in result["shapes"][label].items():
            print(f"{label}  {name:<7} {row['median_ms']:8.2f} ms  {row['ratio_to_output']:5.1f} x output")
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
