"""What tests of whole stages share: a small untrained teacher on Fashion-MNIST, and a recipe of seconds for it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from small_unet import SMALL_UNET

from edgediff import cli, model_folder
from edgediff.data import fashion_mnist
from edgediff.output import Output
from edgediff.recipe import Recipe, check
from edgediff.results import (
    Build,
    Cost,
    Latency,
    LatencyProfile,
    LatencyRow,
    Quality,
    QualityProfile,
    QualityRow,
    Reached,
    Reference,
    Report,
    TrainingSummary,
)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What is kept between runs, such as classifiers of a test's few images, is not kept among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def edgediff(monkeypatch, capsys):
    """A function (*arguments) → (exit code, stdout, stderr) of the command, in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["edgediff", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def small_teacher(tmp_path_factory) -> Path:
    """A pipeline folder of an untrained UNet2DModel for 28x28 grey images."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teachers") / "small"
    model_folder.save(folder, UNet2DModel(**SMALL_UNET), DDPMScheduler())
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """An image folder of 40 training and 40 test images of Fashion-MNIST: features of all of them take a second."""
    folder = tmp_path_factory.mktemp("photos")
    for split in ("train", "test"):
        images = fashion_mnist.load(split, fashion_mnist.packaged_folder())
        (folder / split).mkdir()
        for index in range(40):
            Image.fromarray(images.pixels[index, 0]).save(folder / split / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def small_recipe(small_teacher):
    """A function (section=dict, ...) → Recipe of a run that takes seconds."""

    def make(**sections) -> Recipe:
        values = {
            "teacher": str(small_teacher),
            "prune": {"ratio": 0.5},
            "distill": {"training": {"steps": 6, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 2}},
            "export": {"batch_sizes": [1, 3]},
            "benchmark": {"batch_sizes": [1, 2], "iterations": 3, "warmup_iterations": 1},
            "evaluate": {"num_images": 8, "num_inference_steps": 3, "batch_size": 4},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        return check(values, Recipe)

    return make


@pytest.fixture(scope="session")
def quiet() -> Output:
    """A voice that says nothing."""
    return Output("quiet")


@pytest.fixture
def a_report() -> Report:
    """A report of plausible figures, with an engine that could not run."""
    costs = {"teacher": Cost(params=1000, macs=9000, bytes=4000), "student": Cost(params=100, macs=800, bytes=400)}
    measured = {"device": "cpu", "precision": "fp32", "batch_size": 1, "status": "measured"}
    scores = {"precision": 0.5, "recall": 0.4, "diverged_share": 0.0}
    return Report(
        name="demo",
        teacher="fashion-ddpm",
        edgediff="0.1.0",
        recipe={},
        reached=Reached(
            requested={"ratio": 0.75},
            importance="magnitude",
            widths_before={"a": 8},
            widths_after={"a": 2},
            params_after=100,
            bytes_after=400,
            channels_removed=0.75,
            params_removed=0.9,
            macs_removed=0.9,
        ),
        training=TrainingSummary(kd="place", steps=1, batch_size=1, steps_per_second=1.0, final={}),
        parity={},
        builds=[
            Build(
                backend="tensorrt_rtx",
                version="1",
                seconds=3.0,
                bytes=5000,
                onnx_sha256="",
                batch=(1, 1, 1),
                compute_capabilities=[],
            )
        ],
        latency=Latency(
            profile=LatencyProfile(
                device="cpu A",
                threads=1,
                warmup_iterations=1,
                iterations=5,
                num_inference_steps=10,
                sample_shape=(1, 28, 28),
            ),
            costs={**costs, "pruned": costs["student"]},
            rows=[
                LatencyRow(role="teacher", backend="onnxruntime", step_p50_ms=8.0, speedup=1.0, **measured),
                LatencyRow(role="student", backend="onnxruntime", step_p50_ms=2.0, speedup=4.0, **measured),
                LatencyRow(
                    role="student",
                    backend="tensorrt_rtx",
                    device="cuda",
                    precision="fp32",
                    batch_size=1,
                    status="not run",
                    reason="no NVIDIA GPU",
                ),
            ],
        ),
        quality=Quality(
            profile=QualityProfile(
                extractor="e",
                extractor_sha256="1",
                resize="r",
                reference=Reference(name="n", sha256="2", num_images=9),
                num_images=5,
                sampler="ddim",
                num_inference_steps=10,
                clip_sample=True,
                first_seed=0,
                kid_subset_size=5,
                kid_subsets=3,
                neighbours=3,
            ),
            rows=[
                QualityRow(role="teacher", backend="b", frechet_distance=100, kid_mean=0.1, kid_std=0.02, **scores),
                QualityRow(
                    role="student",
                    backend="b",
                    frechet_distance=200,
                    kid_mean=0.5,
                    kid_std=0.05,
                    psnr_to_teacher=20.0,
                    ssim_to_teacher=0.8,
                    **scores,
                ),
            ],
        ),
    )


@pytest.fixture
def tiny_disk(tmp_path):
    """A real file system of 256 KiB, where the system lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="session")
def without_edgediff():
    """A function (pipeline folder, expression of `pipeline`) → its text, from a process that cannot import edgediff."""

    def evaluate(folder, expression):
        script = (
            "import sys; sys.modules['edgediff'] = None\n"
            "from diffusers import DDPMPipeline\n"
            f"pipeline = DDPMPipeline.from_pretrained({str(folder)!r})\n"
            f"print({expression})\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return evaluate
