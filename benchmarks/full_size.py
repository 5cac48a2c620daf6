"""Every teacher family at its full size, with random weights: what a prune, and for SD 2.1 the whole way, takes.

    python benchmarks/full_size.py --work runs/full-size            # all cases; finished ones are kept
    python benchmarks/full_size.py --work runs/full-size --case sd2.1-base/width-0.9

Weights are random, so nothing here says anything of images. Every verb runs in a process of its own, whose peak
resident memory the system tells when it ends. A teacher is written in bfloat16, as large ones are published; SD 2.1
gets a small autoencoder and text encoder of the right shapes, for only their outputs meet the student. Results:
benchmarks/results/full-size.json, and a table on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from edgediff import families, registry
from edgediff.artifacts import made, read_json, write_json
from edgediff.registry import Entry

RESULT = Path(__file__).parent / "results" / "full-size.json"
PIPELINES = {
    "sd2.1-base": "StableDiffusionPipeline",
    "dit-xl-2-256": "DiTPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3-medium": "StableDiffusion3Pipeline",
}
WIDTHS: dict[str, dict[str, Any]] = {"width-0.5": {"ratio": 0.5}, "width-0.9": {"ratio": 0.9}}
DEPTHS: dict[str, dict[str, Any]] = {
    "sd2.1-base": {"rule": "bk_base"},
    "dit-xl-2-256": {"keep": 14, "by": "evenly"},
    "sdxl": {"rule": "koala_1b"},
    "sd3-medium": {"keep": 11, "by": "evenly"},
}
WHOLE_WAY = "sd2.1-base/width-0.9"
PRUNE = """
import json, sys
from pathlib import Path
from edgediff import pipeline
from edgediff.output import Output
from edgediff.prune import prune
from edgediff.recipe import Recipe, check
from edgediff.run import Run
run, recipe = Run(Path(sys.argv[1])), check(json.loads(sys.argv[2]), Recipe)
pipeline.claim(run, recipe)
print(prune(run, recipe, Output("quiet")).model_dump_json())
"""
EXPORT = """
import json, sys
from pathlib import Path
from edgediff.export import export
from edgediff.output import Output
from edgediff.recipe import Recipe, check
from edgediff.run import Run
run, recipe = Run(Path(sys.argv[1])), check(json.loads(sys.argv[2]), Recipe)
print(export(run, recipe, "student", Output("quiet")).model_dump_json())
"""
RELOAD = """
import json, sys
import diffusers, torch
kind, folder = sys.argv[1:]
model = getattr(diffusers, kind).from_pretrained(folder, torch_dtype=torch.bfloat16)
assert "edgediff" not in sys.modules
print(json.dumps({"params": sum(p.numel() for p in model.parameters())}))
"""


def main() -> None:
    """Run the cases that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where teachers and runs go; needs 15 GB")
    parser.add_argument("--case", help="one case again: teacher/prune, such as sdxl/width-0.5")
    given = parser.parse_args()
    results: dict[str, Any] = read_json(RESULT)["cases"] if RESULT.exists() else {}
    for name in PIPELINES:
        cases = [f"{name}/{prune}" for prune in (*WIDTHS, "depth")]
        todo = [case for case in cases if (case == given.case if given.case else case not in results)]
        if not todo:
            continue
        folder = given.work / "teachers" / name
        if not (folder / "model_index.json").is_file():
            write_teacher(name, folder)
        for case in todo:
            results[case] = measured(case, folder, given.work / "runs" / case)
            write_json(RESULT, {"made": made(), "cases": results})
        shutil.rmtree(folder)
    show(results)


def measured(case: str, teacher: Path, run: Path) -> dict[str, Any]:
    """Return seconds and peak memory of every step of a case, and the sizes before and after."""
    name, prune = case.split("/")
    shutil.rmtree(run, ignore_errors=True)
    recipe: dict[str, Any] = {
        "teacher": str(teacher),
        "prune": WIDTHS[prune] if prune in WIDTHS else {"depth": DEPTHS[name]},
        "data": {"name": str(captioned(run.parent / "images"))},
        "distill": {"kd": "place", "training": {"steps": 2, "batch_size": 1, "warmup_steps": 0}},
        "export": {"batch_sizes": [1, 2]},
        "build": {"backends": ["tensorrt_rtx"], "max_batch": 2},
    }
    entry = registry.entry(name)
    found: dict[str, Any] = {"asked": recipe["prune"], "params_before": entry.params}
    found["prune"], printed = timed("-c", PRUNE, str(run), json.dumps(recipe))
    found["params_after"] = json.loads(printed)["params_after"]
    found["stock reload"], printed = timed("-c", RELOAD, entry.class_name, str(run / "pruned" / entry.component))
    if json.loads(printed)["params"] != found["params_after"]:
        raise RuntimeError(f"{case}: the stock model has {printed} parameters, not {found['params_after']:,}")
    if case == WHOLE_WAY:
        found["distill"], _ = timed("-m", "edgediff", "distill", str(run), "--json")
        found["export"], printed = timed("-c", EXPORT, str(run), json.dumps(recipe))
        found["parity"] = json.loads(printed)["cases"]
        found["build"], _ = timed("-m", "edgediff", "build", str(run), "--json")
        found["engine_bytes"] = read_json(run / "engine" / "tensorrt_rtx" / "build.json")["bytes"]
    shutil.rmtree(run)
    return found


def timed(*arguments: str) -> tuple[dict[str, float], str]:
    """Run Python with these arguments; return what it took, and what it printed.

    Seconds are by the clock and of the processor: the latter do not depend on what else the machine does.

    Raises: RuntimeError, with its last words, when it fails.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, "-W", "ignore", *arguments], stdout=printed, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        printed.seek(0)
        said.seek(0)
        if status:
            raise RuntimeError(f"{arguments} ended with {status}: {said.read()[-2000:]}")
        seconds = time.perf_counter() - began
        found = {
            "seconds": round(seconds, 1),
            "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
            "peak_gib": round(usage.ru_maxrss / 2**20, 2),
        }
        return found, printed.read()


def write_teacher(name: str, folder: Path) -> None:
    """Write a teacher of the registry's config with random weights, in bfloat16."""
    entry = registry.entry(name)
    family = families.of(entry.class_name)
    model: Any = family.build(entry.config, "meta").to(torch.bfloat16).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.02, generator=generator)
        for buffer in model.buffers():
            buffer.zero_()
    model.save_pretrained(folder / entry.component)
    scheduler = getattr(diffusers, entry.scheduler["_class_name"]).from_config(entry.scheduler)
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": PIPELINES[name],
        entry.component: ["diffusers", entry.class_name],
        "scheduler": ["diffusers", entry.scheduler["_class_name"]],
    }
    if name == WHOLE_WAY.split("/")[0]:
        index |= write_small_parts(entry, folder)
    write_json(folder / "model_index.json", index)


def write_small_parts(entry: Entry, folder: Path) -> dict[str, list[str | None]]:
    """Write an autoencoder and a text encoder that give what the teacher takes; return their lines of the index."""
    levels = 4
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(16,) * levels,
        norm_num_groups=4,
    ).save_pretrained(folder / "vae")
    words = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    words += ["<|startoftext|>", "<|endoftext|>"]
    of_tokenizer = folder / "tokenizer"
    of_tokenizer.mkdir()
    (of_tokenizer / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (of_tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (of_tokenizer / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    CLIPTokenizer.from_pretrained(of_tokenizer).save_pretrained(of_tokenizer)
    end = len(words) - 1
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=entry.config["cross_attention_dim"],
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=16,
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
        )
    ).save_pretrained(folder / "text_encoder")
    return {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }


def captioned(folder: Path) -> Path:
    """Write two images of noise a split, each with a caption."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for index in range(2):
            pixels = generator.integers(0, 255, (512, 512, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{index}.png")
            (folder / split / f"{index}.txt").write_text("a b")
    return folder


def show(results: dict[str, Any]) -> None:
    """Print every step's seconds and peak memory as a Markdown table."""
    print("| teacher | cut | parameters | step | seconds | of the processor | peak GiB |")
    print("|---|---|---:|---|---:|---:|---:|")
    for case, found in results.items():
        size = f"{found['params_before'] / 1e6:,.1f}M → {found['params_after'] / 1e6:,.1f}M"
        for step, cost in found.items():
            if isinstance(cost, dict) and "seconds" in cost:
                cells = [*case.split("/"), size, step, *map(str, cost.values())]
                print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
