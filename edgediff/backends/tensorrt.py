"""Engines of TensorRT and TensorRT-RTX: two libraries, one programming interface, one implementation.

TensorRT-RTX builds ahead of time on a machine without a GPU, for several generations of RTX GPUs at once. The classic
TensorRT (10.3 and later, JetPack's included) builds on the GPU it builds for. Precision is a property of the graph:
both build strongly typed networks only. Running an engine needs an NVIDIA GPU with either.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgediff.backends import DISTRIBUTIONS, EXTRAS
from edgediff.errors import BadInputError, CorruptArtifactError, MissingExtraError, StageFailedError
from edgediff.interrupts import deferred_interrupt

# RTX GPUs from Ampere on; SM75 (Turing) refuses fp32 matrix products and bf16.
RTX_TARGETS = ("SM80", "SM86", "SM89", "SM120")

# TensorRT's names of the types of a graph's inputs.
TYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64}


def library(backend: str) -> Any:
    """Import the library of `tensorrt_rtx` or `tensorrt`.

    Raises: MissingExtraError when it is not installed or its shared libraries cannot be loaded.
    """
    module, package, *_ = DISTRIBUTIONS[backend]
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise MissingExtraError(package, EXTRAS[backend], f"building with {backend}") from error


def build_engine(
    backend: str,
    graph: Path,
    batch: tuple[int, int, int],
    on_progress: Callable[[str, int], bool] = lambda phase, steps: True,
) -> tuple[bytes, list[str]]:
    """Compile an ONNX graph with a dynamic batch into an engine.

    Args: batch: smallest, likeliest and largest batch size of the optimization profile.
          on_progress: called with a phase's name and the steps it has done; False cancels the build.
    Returns: the serialized engine, and the GPU generations it is for (empty: the one of the building GPU).
    Raises: MissingExtraError; StageFailedError, with the parser's or builder's own words, when the graph is refused;
    KeyboardInterrupt after a SIGINT, once the builder has stopped.
    """
    trt = library(backend)
    logger = _collecting_logger(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # how the bindings say that the library returned no builder
        raise StageFailedError(f"{backend} cannot create a builder", logger.worst()) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        reasons = "; ".join(_worded(parser.get_error(index)) for index in range(parser.num_errors))
        raise StageFailedError(f"{backend} does not accept the graph: `{graph}`", reasons or logger.worst())
    config = builder.create_builder_config()
    targets = _target_gpus(trt, config) if backend == "tensorrt_rtx" else []
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(tensor.name, *((size, *tuple(tensor.shape)[1:]) for size in batch))
    config.add_optimization_profile(profile)
    # The library calls back into Python and swallows whatever is raised there, KeyboardInterrupt included.
    with deferred_interrupt() as interrupted:
        config.progress_monitor = _monitor(trt, on_progress, interrupted)
        serialized = builder.build_serialized_network(network, config)
    if interrupted.is_set():
        raise KeyboardInterrupt
    if serialized is None:
        raise StageFailedError(f"{backend} could not build an engine from: `{graph}`", logger.worst())
    return bytes(serialized), targets


class EngineDenoiser:
    """A built engine as a `Denoiser`, on the current CUDA device and stream."""

    device = "cuda"
    precision = "fp32"

    def __init__(self, backend: str, path: Path) -> None:
        """Load the engine at `path`.

        Raises: BadInputError when there is no file or no NVIDIA GPU; MissingExtraError; CorruptArtifactError when the
        library refuses the engine (another version, another GPU, a damaged file).
        """
        if not path.is_file():
            raise BadInputError(f"engine not found: `{path}`", "run `edgediff build` first")
        if not torch.cuda.is_available():
            raise BadInputError("running an engine needs an NVIDIA GPU, and there is none here")
        trt = library(backend)
        self.backend = backend
        self.logger = _collecting_logger(trt)
        self.runtime = trt.Runtime(self.logger)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise CorruptArtifactError(
                f"{backend} {trt.__version__} refuses the engine: `{path}`",
                self.logger.worst() or "engines do not move between GPUs or versions; build it again here",
            )
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise StageFailedError(f"{backend} cannot prepare the engine to run: `{path}`", self.logger.worst())
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self.types = {name: TYPES[self.engine.get_tensor_dtype(name).name] for name in self.inputs}
        (self.output,) = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]

    def __call__(self, sample: Tensor, timestep: Tensor, **conditioning: Tensor) -> Tensor:
        """See `Denoiser`.

        Raises: BadInputError for a batch size outside the engine's optimization profile.
        """
        given = {"sample": sample, "timestep": timestep, **conditioning}
        # Kept in a variable until the stream is done: TensorRT holds addresses, not references.
        buffers = {name: given[name].to("cuda", self.types[name]).contiguous() for name in self.inputs}
        for name, value in buffers.items():
            if not self.context.set_input_shape(name, tuple(value.shape)):
                raise BadInputError(
                    f"engine does not accept {name} of shape {tuple(value.shape)}", "build it for this batch size"
                )
            self.context.set_tensor_address(name, value.data_ptr())
        shape = tuple(self.context.get_tensor_shape(self.output))
        prediction = torch.empty(shape, dtype=torch.float32, device="cuda")
        self.context.set_tensor_address(self.output, prediction.data_ptr())
        stream = torch.cuda.current_stream()
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise StageFailedError(f"{self.backend} failed to run the engine", self.logger.worst())
        stream.synchronize()
        return prediction.to(sample.device)


def _worded(error: Any) -> str:
    """Say what a parser refused: its description alone is often no more than the condition that failed."""
    where = " ".join(part for part in (error.node_operator(), error.node_name()) if part)
    return f"{error.code().name}{f' at {where}' if where else ''}: {error.desc()}"


def _target_gpus(trt: Any, config: Any) -> list[str]:
    known = [name for name in RTX_TARGETS if hasattr(trt.ComputeCapability, name)]
    config.num_compute_capabilities = len(known)
    for index, name in enumerate(known):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    return known


def _collecting_logger(trt: Any) -> Any:
    """Return a logger that keeps errors instead of printing them; its base class exists only once `trt` is imported."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        def worst(self) -> str:
            return "; ".join(self.errors[:3])

    return Logger()


def _monitor(trt: Any, on_progress: Callable[[str, int], bool], interrupted: threading.Event) -> Any:
    """Return a progress monitor that reports every finished step, and cancels when told to or `interrupted`."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            on_progress(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return on_progress(phase_name, step + 1) and not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
