"""Latency budgets: what the search finds, what the profile predicts for it, and what is measured.

    taskset -c 0 python benchmarks/budget_search.py [fashion-ddpm] [dit-small]

Profiles are kept in `results/budget-search/` and used again. The student of every budget is then exported and timed in
turns with the teacher, as `edgediff bench` does, without the other students, which would cost both their caches; the
error is that of the share of the teacher's latency in the same rounds. `dit-small` has random weights, which changes
neither its latency nor how it is predicted.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel

from edgediff import model_folder, teacher
from edgediff.artifacts import made, write_json
from edgediff.backends.memory import peak_memory_mib
from edgediff.backends.onnx_graph import tidy, write_graph
from edgediff.budgets.choice import choose
from edgediff.budgets.measure import clock_of, feeds_of, load, side_by_side, undisturbed
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


def graph_of(family: Any, config: Any, path: Path) -> Path:
    """Return a graph as `edgediff export` writes it, of random weights."""
    path.parent.mkdir()
    write_graph(family.build(config).eval(), family, path, ExportConfig().opset)
    tidy(path)
    return path


def searched(name: str, loaded: Loaded, source: str, temporary: Path, output: Output) -> dict[str, Any]:
    family, config = loaded.family, dict(loaded.model.config)
    table = profile(source, RESULTS / f"profile-{name}.json", THREADS, output)
    scores = importance_scores("magnitude", loaded.model, family)
    shares = BUDGETS[name]
    choices = {
        share: choose(family, config, PruneConfig(latency_ms=share * table.teacher_ms), table, scores)
        for share in shares
    }
    graphs = {"teacher": graph_of(family, config, temporary / f"{name}-teacher" / "model.onnx")}
    for share, choice in choices.items():
        shallow = family.without_blocks(config, choice.removed).config if choice.removed else config
        student = family.student_config(shallow, choice.widths)
        graphs[f"{share:.0%}"] = graph_of(family, student, temporary / f"{name}-{share}" / "model.onnx")
        output.say(f"{name}, {share:.0%}: exported")
    runs = {key: load(graph, feeds_of(family, config), THREADS) for key, graph in graphs.items()}
    rows = []
    for share, choice in choices.items():
        found, whole = choice.record.found, choice.record.teacher
        key = f"{share:.0%}"
        times = side_by_side({each: runs[each] for each in ("teacher", key)}, THREADS)
        ratios = [own / of_teacher for own, of_teacher in zip(times[key], times["teacher"], strict=True)]
        peak = peak_memory_mib("onnxruntime", graphs[key], batch_size=1, threads=THREADS) * 2**20 / 1e6
        predicted_share = found.costs["latency_ms"] / whole["latency_ms"]
        measured_share = statistics.median(ratios)
        rows.append(
            {
                "budget_ms": choice.record.budgets["latency_ms"],
                "budget_share": share,
                "widths": list(choice.widths.values()),
                "blocks_removed": list(choice.removed),
                "importance_kept": found.importance_kept,
                "params": found.costs["params"],
                "macs": found.costs["macs"],
                "predicted_ms": found.costs["latency_ms"],
                "measured_ms": undisturbed(times[key]),
                "teacher_ms": undisturbed(times["teacher"]),
                "rounds": len(ratios),
                "predicted_share": predicted_share,
                "measured_share": measured_share,
                "latency_error": predicted_share / measured_share - 1,
                "predicted_mb": found.costs["memory_mb"],
                "measured_mb": peak,
                "memory_error": found.costs["memory_mb"] / peak - 1,
                "pareto_points_passed": len(choice.record.passed),
            }
        )
    return {
        "profile": f"profile-{name}.json",
        "teacher_ms_in_profile": table.teacher_ms,
        "budgets": rows,
    }


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
        for row in result["budgets"]:
            widths = ", ".join(map(str, row["widths"]))
            print(
                f"  {row['budget_share']:4.0%} ({row['budget_ms']:5.2f} ms): widths ({widths}), "
                f"{len(row['blocks_removed'])} blocks removed, importance {row['importance_kept']:.1%}; latency "
                f"predicted {row['predicted_ms']:.2f} ms = {row['predicted_share']:.1%}, "
                f"measured {row['measured_ms']:.2f} of {row['teacher_ms']:.2f} ms = {row['measured_share']:.1%}, "
                f"error {row['latency_error']:+.1%}; memory predicted {row['predicted_mb']:.1f}, "
                f"measured {row['measured_mb']:.1f} MB, {row['memory_error']:+.1%}"
            )


if __name__ == "__main__":
    main(sys.argv[1:] or list(BUDGETS))
