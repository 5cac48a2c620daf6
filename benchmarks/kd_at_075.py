"""PLACE against its rivals on the embedded teacher: equal steps, equal seed, two samplers.

    python benchmarks/kd_at_075.py train --out runs/kd-0.75 --kd place      # one process an objective, resumable
    python benchmarks/kd_at_075.py score --out runs/kd-0.75                 # all that are trained, in one run

Scores go to benchmarks/results/kd-at-0.75.json and as a table to stdout. Images of the teacher are drawn once; every
student is scored with x0 clipped and not clipped in the sampler, because the ranking depends on it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgediff import model_folder, samples, teacher
from edgediff.artifacts import made, read_json, write_json
from edgediff.backends.onnxruntime import OnnxRuntimeDenoiser
from edgediff.distill import distill
from edgediff.export import export
from edgediff.metrics.features import efficientnet_lite0
from edgediff.output import Output
from edgediff.prune import prune
from edgediff.quality import draw, floor_row, model_row, profile, real_images
from edgediff.recipe import EvaluateConfig, Recipe, check
from edgediff.run import Run

METHODS = ("none", "output", "lift", "place")
RESULT = Path(__file__).parent / "results" / "kd-at-0.75.json"


def recipe(kd: str, steps: int) -> Recipe:
    training = {"steps": steps, "batch_size": 64, "learning_rate": 2e-3, "ema_decay": 0.995, "precision": "bf16"}
    values = {
        "teacher": "fashion-ddpm",
        "data": {"name": "fashion-mnist-20k"},
        "prune": {"ratio": 0.75},
        "distill": {"kd": kd, "training": training},
    }
    return check(values, Recipe)


def train(out: Path, kd: str, steps: int, output: Output) -> None:
    run, what = Run(out / kd), recipe(kd, steps)
    prune(run, what, output)
    distill(run, what, output, resume=True)
    export(run, what, "student", output)


def score(out: Path, num_images: int, output: Output) -> None:
    folder = teacher.resolve("fashion-ddpm").folder
    loaded, extractor = model_folder.load(folder), efficientnet_lite0()
    images = recipe("none", 1).data
    reference = samples.scored(images, "test", loaded, out / "encoded", output)
    training = samples.scored(images, "train", loaded, out / "encoded", output)
    real = real_images(reference, training, extractor, num_images, output)
    trained = [kd for kd in METHODS if (out / kd / "onnx" / "student" / "manifest.json").exists()]
    export(Run(out / "teacher"), recipe("none", 1), "teacher", output)
    samplers: list[dict[str, Any]] = []
    result = {"made": made(), "floor": floor_row(real).model_dump(mode="json"), "samplers": samplers}
    for clip_sample in (True, False):
        settings = EvaluateConfig(num_images=num_images, clip_sample=clip_sample)
        denoiser = OnnxRuntimeDenoiser(Run(out / "teacher").onnx("teacher") / "model.onnx")
        of_teacher = draw(denoiser, loaded, settings, output, "teacher", reference)
        rows = {"teacher": model_row("teacher", of_teacher, real, extractor).model_dump(mode="json")}
        for kd in trained:
            run = Run(out / kd)
            denoiser = OnnxRuntimeDenoiser(run.onnx("student") / "model.onnx")
            drawn = draw(denoiser, model_folder.load(run.student), settings, output, kd, reference)
            rows[kd] = model_row("student", drawn, real, extractor, of_teacher).model_dump(mode="json")
        asked = profile(real, extractor, settings, loaded, images)
        samplers.append({"profile": asked.model_dump(mode="json"), "rows": rows})
        result["students"] = {kd: read_json(out / kd / "student" / "manifest.json")["training"] for kd in trained}
        write_json(RESULT, result)
    show(result)


def show(result: dict[str, Any]) -> None:
    for sampler in result["samplers"]:
        print(f"\nx0 {'clipped' if sampler['profile']['clip_sample'] else 'not clipped'}\n")
        print("| | FD | KID | precision | recall | PSNR to teacher | SSIM to teacher | abs(x) > 1.5 |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        for name, row in {"floor": result["floor"], **sampler["rows"]}.items():
            paired = [row["psnr_to_teacher"], row["ssim_to_teacher"], row["diverged_share"]]
            texts = [f"{value:.3f}" if value is not None else "–" for value in paired]
            print(
                f"| {name} | {row['frechet_distance']:.0f} | {row['kid_mean']:.3f} ± {row['kid_std']:.3f} | "
                f"{row['precision']:.2f} | {row['recall']:.2f} | {' | '.join(texts)} |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "score"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kd", choices=METHODS, default="place")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--images", type=int, default=2000)
    given = parser.parse_args()
    if given.what == "train":
        train(given.out, given.kd, given.steps, Output())
    else:
        score(given.out, given.images, Output())
