"""Time of a training step of the extreme student, with stock convolutions and narrow ones, side by side on one core.

    taskset -c 1 python benchmarks/narrow_speed.py

Rounds take one step of each in turn; given are medians of processor milliseconds, which others on the machine change
little, and their ratio.
"""

from __future__ import annotations

import copy
import statistics
import time
from pathlib import Path

import torch
from extreme_compression import BATCH, EXTREME, TEACHER
from narrow_convolution import adopt
from torch import nn

from edgediff import model_folder, teacher
from edgediff.artifacts import made, write_json
from edgediff.pruning import widths_for_ratio

RESULT = Path(__file__).parent / "results" / "narrow-speed.json"
ROUNDS, WARMUP = 40, 3


def step(model: nn.Module, images: torch.Tensor, timesteps: torch.Tensor) -> float:
    """Return the processor milliseconds of one forward and backward."""
    began = time.process_time()
    model.zero_grad()
    model(images, timesteps).sample.square().mean().backward()
    return 1000 * (time.process_time() - began)


def main() -> None:
    torch.set_num_threads(1)
    big = model_folder.load(teacher.resolve(TEACHER).folder)
    config = big.family.student_config(big.model.config, widths_for_ratio(big.family, dict(big.model.config), EXTREME))
    models = {"stock": big.family.build(config).train()}
    models["narrow"] = copy.deepcopy(models["stock"])
    adopt(models["narrow"])
    images, timesteps = torch.randn(BATCH, *big.sample_shape), torch.randint(1000, (BATCH,))
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(WARMUP + ROUNDS):
        for name, model in models.items():
            taken[name].append(step(model, images, timesteps))
    median = {name: statistics.median(times[WARMUP:]) for name, times in taken.items()}
    ratio = statistics.median(
        stock / narrow for stock, narrow in zip(taken["stock"][WARMUP:], taken["narrow"][WARMUP:], strict=True)
    )
    found = {"made": made(), "batch_size": BATCH, "rounds": ROUNDS, "median_ms": median, "median_ratio": ratio}
    write_json(RESULT, found)
    print(found)


if __name__ == "__main__":
    main()
