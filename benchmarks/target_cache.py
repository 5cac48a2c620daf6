"""Steps a second of an extreme distillation with a live teacher, a filling cache and a warm one, side by side.

    taskset -c 0 python benchmarks/target_cache.py

Teacher `fashion-ddpm`, student of 1.6 % of its parameters. Every round takes one step of every kind; printed are the
median step and the median of the ratios within rounds, and where a warm step's time goes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from edgediff import model_folder, samples, teacher
from edgediff.artifacts import made, write_json
from edgediff.data.shards import Shard
from edgediff.distill import starting_student, taught_batches
from edgediff.distillation.cache import SHARDS
from edgediff.distillation.objective import Distillation
from edgediff.output import Output
from edgediff.pruning import widths_for_ratio
from edgediff.recipe import Recipe, check
from edgediff.training.precision import attention_kernel, autocast

RESULT = Path(__file__).parent / "results" / "target-cache.json"
RATIO, ROUNDS = 0.875, 12


class Steps:
    """Training steps of one kind: a live teacher, or a cache in `folder`."""

    def __init__(self, batch_size: int, targets: int, folder: Path, kd: str, precision: str) -> None:
        big = model_folder.load(teacher.resolve("fashion-ddpm").folder)
        widths = widths_for_ratio(big.family, big.model.config, RATIO)
        small = big.family.build(big.family.student_config(big.model.config, widths))
        distill = {
            "kd": kd,
            "initial": "fresh",
            "cache": {"targets": targets},
            "training": {"batch_size": batch_size, "precision": precision},
        }
        values = {"teacher": "fashion-ddpm", "data": {"name": "fashion-mnist-20k"}, "prune": {"ratio": RATIO}}
        recipe = check({**values, "distill": distill}, Recipe)
        self.config = recipe.distill
        student = starting_student(model_folder.Loaded(small, big.scheduler, big.family, ""), self.config)
        images = samples.learned(recipe.data, "train", big, folder / "encoded", Output())
        self.objective = Distillation(student, [big], self.config).train()
        self.batches = taught_batches(student, [big], images, recipe, folder, print)
        self.optimizer = torch.optim.AdamW(self.objective.parameters(), lr=1e-4, fused=True)
        self.step = 0

    def __call__(self) -> float:
        began = time.perf_counter()
        size, how = self.config.training.batch_size, (self.config.training.precision, torch.device("cpu"))
        with attention_kernel(*how):
            with autocast(*how):
                positions = torch.arange(self.step * size, (self.step + 1) * size)
                loss, _ = self.objective(self.batches(self.step, positions))
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()
        self.step += 1
        return time.perf_counter() - began


def measure(batch_size: int, kd: str, precision: str, folder: Path) -> dict[str, Any]:
    targets = 4 * batch_size
    kinds = {
        "live": Steps(batch_size, 0, folder, kd, precision),
        "filling": Steps(batch_size, (ROUNDS + 2) * batch_size, folder / "filling", kd, precision),
        "warm": Steps(batch_size, targets, folder / "warm", kd, precision),
    }
    for _ in range(4):
        kinds["warm"]()
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for index in range(ROUNDS + 2):
        for name, step in kinds.items():
            seconds = step()
            if index >= 2:
                taken[name].append(seconds)
    shard = next((folder / "warm").glob(SHARDS))
    return {
        "batch_size": batch_size,
        "kd": kd,
        "precision": precision,
        "seconds_a_step": {name: statistics.median(values) for name, values in taken.items()},
        "times_as_fast_as_live": {
            name: statistics.median(a / b for a, b in zip(taken["live"], values, strict=True))
            for name, values in taken.items()
        },
        "bytes_a_target": shard.stat().st_size / Shard(shard).entries,
    }


def operators(batch_size: int, folder: Path) -> dict[str, float]:
    """Return the share of a warm step's processor time by operator, the largest first."""
    step = Steps(batch_size, 2 * batch_size, folder, "output", "fp32")
    for _ in range(4):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(spent.values())
    largest = sorted(spent, key=spent.__getitem__, reverse=True)[:8]
    return {name: spent[name] / total for name in largest}


def main(batch_sizes: list[int]) -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    result = {"made": made(), "threads": 1, "rounds": ROUNDS, "student": "1.6 % of fashion-ddpm", "rows": rows}
    with tempfile.TemporaryDirectory() as folder:
        for place, (size, kd, precision) in enumerate(
            [(size, "output", "fp32") for size in batch_sizes]
            + [(64, "output", "bf16"), (64, "place", "fp32"), (64, "output,feature", "fp32")]
        ):
            row = measure(size, kd, precision, Path(folder) / str(place))
            rows.append(row)
            times, ratio = row["seconds_a_step"], row["times_as_fast_as_live"]
            print(
                f"batch {size:3} {kd:15} {precision}: live {1000 * times['live']:5.0f} ms, filling "
                f"{ratio['filling']:.2f} x, warm {1000 * times['warm']:5.0f} ms = {ratio['warm']:.2f} x; "
                f"{row['bytes_a_target'] / 1024:.1f} KiB a target"
            )
        result["warm_step_by_operator"] = shares = operators(64, Path(folder) / "operators")
        print({name: round(share, 2) for name, share in shares.items()})
    write_json(RESULT, result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64, 256])
    main(parser.parse_args().batch_sizes)
