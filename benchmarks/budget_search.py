"""Latency budgets: what the search finds, what the profile predicts for it, and what is measured.

    taskset -c 0 python benchmarks/budget_search.py [fashion-ddpm] [dit-small]

Profiles are kept in `results/budget-search/` and used again. The student of every budget is found twice: by the profile
alone, as with another machine's profile, and as `prune` does where the device is at hand, measuring what was found and
searching on until both agree. Both are then timed anew in turns with the teacher, as `edgediff bench` does: their share
of the teacher's step in the same rounds, times its step in the profile. `dit-small` has random weights, which changes
neither its latency nor how it is predicted.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel

from edgediff import model_folder, teacher
from edgediff.artifacts import made, write_json
from edgediff.backends.memory import peak_memory_mib
from edgediff.backends.onnx_graph import tidy, write_graph
from edgediff.budgets.agreement import agreed
from edgediff.budgets.choice import Choice, choose
from edgediff.budgets.measure import beside, clock_of
from edgediff.families import Family
from edgediff.model_folder import Loaded
from edgediff.output import Output
from edgediff.profile import profile
from edgediff.pruning import importance_scores
from edgediff.recipe import ExportConfig, PruneConfig

RESULTS = Path(__file__).parent / "results" / "budget-search"
BUDGETS = {"fashion-ddpm": (0.5, 0.35, 0.25), "dit-small": (0.75, 0.5, 0.25)}  # of the teacher's latency
THREADS = 1
DIT = {
    **{"num_attention_heads": 8, "attention_head_dim": 32, "num_layers": 6, "sample_size": 16, "patch_size": 2},
    **{"in_channels": 4, "out_channels": 4, "num_embeds_ada_norm": 10},
}


def folder_of(name: str, temporary: Path) -> str:
    """Return what `--teacher` would be."""
    if name != "dit-small":
        return name
    torch.manual_seed(0)
    model_folder.save(temporary / name, DiTTransformer2DModel(**DIT), DDPMScheduler())
    return str(temporary / name)


def searched(name: str, loaded: Loaded, source: str, temporary: Path, output: Output) -> dict[str, Any]:
    family, config = loaded.family, dict(loaded.model.config)
    table = profile(source, RESULTS / f"profile-{name}.json", THREADS, output)
    scores = importance_scores("magnitude", loaded.model, family)
    rows = []
    with beside(family, config, THREADS) as share:

        def measured(choice: Choice) -> float:
            return table.teacher_ms * share(choice.student_config)

        for budget in BUDGETS[name]:
            settings = PruneConfig(latency_ms=budget * table.teacher_ms)
            profiled = partial(choose, family, config, settings, table, scores, output)
            unchecked = profiled(None)
            choice = agreed(profiled, measured, output)
            rows.append(
                {
                    "budget_ms": settings.latency_ms,
                    "budget_share": budget,
                    "by_profile_alone": row(unchecked, measured(unchecked)),
                    **row(choice, measured(choice)),  # anew: the search has seen its own measurement
                    "memory_mb": memory(family, choice, temporary / str(budget)),
                    "pareto_points_passed": len(choice.record.passed),
                }
            )
    return {"profile": f"profile-{name}.json", "teacher_ms_in_profile": table.teacher_ms, "budgets": rows}


def row(choice: Choice, measured_ms: float) -> dict[str, Any]:
    found = choice.record.found
    return {
        "widths": list(choice.widths.values()),
        "blocks_removed": list(choice.removed),
        "importance_kept": found.importance_kept,
        "params": found.costs["params"],
        "macs": found.costs["macs"],
        "predicted_ms": found.costs["latency_ms"],
        "measured_ms": measured_ms,
        "latency_error": found.costs["latency_ms"] / measured_ms - 1,
    }


def memory(family: Family, choice: Choice, folder: Path) -> dict[str, float]:
    """Return the predicted and the measured peak of the student's process, in MB."""
    folder.mkdir()
    graph = folder / "model.onnx"
    write_graph(family.build(choice.student_config).eval(), family, graph, ExportConfig().opset)
    tidy(graph)
    peak = peak_memory_mib("onnxruntime", graph, batch_size=1, threads=THREADS) * 2**20 / 1e6
    predicted = choice.record.found.costs["memory_mb"]
    return {"predicted": predicted, "measured": peak, "error": predicted / peak - 1}


def main(names: list[str]) -> None:
    torch.set_num_threads(THREADS)
    output = Output()
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            source = folder_of(name, Path(folder))
            loaded = model_folder.load(teacher.resolve(source).folder)
            result = searched(name, loaded, source, Path(folder), output)
        result = {
            "made": made(),
            "threads": THREADS,
            "clock": clock_of(THREADS)[0],
            "importance": "magnitude",
            **result,
        }
        write_json(RESULTS / f"{name}.json", result)
        print(f"{name}: teacher {result['teacher_ms_in_profile']:.2f} ms in the profile")
        for found in result["budgets"]:
            print(f"  {found['budget_share']:4.0%} ({found['budget_ms']:5.2f} ms)")
            for label, of in (("by profile", found["by_profile_alone"]), ("and measuring", found)):
                widths = ", ".join(map(str, of["widths"]))
                print(
                    f"      {label:14} widths ({widths}), {len(of['blocks_removed'])} blocks removed, importance "
                    f"{of['importance_kept']:.1%}; predicted {of['predicted_ms']:.2f} ms, measured "
                    f"{of['measured_ms']:.2f} ms, error {of['latency_error']:+.1%}"
                )
            of = found["memory_mb"]
            print(f"      memory predicted {of['predicted']:.1f}, measured {of['measured']:.1f} MB, {of['error']:+.1%}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(BUDGETS))
