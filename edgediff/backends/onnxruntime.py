"""ONNX Runtime: the exported graph on CPUs and, with `onnxruntime-gpu`, on CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgediff.errors import BadInputError, CorruptArtifactError, MissingExtraError

CUDA_PROVIDER = "CUDAExecutionProvider"
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
DEVICES = {"CPUExecutionProvider": "cpu", CUDA_PROVIDER: "cuda"}


def available_providers() -> list[str]:
    """Return the execution providers of the installed ONNX Runtime."""
    import onnxruntime

    return onnxruntime.get_available_providers()


def session_options(threads: int | None) -> Any:
    """Return how sessions run here: on so many threads, all cores when None."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    # Idle sessions must not burn the cores that the model timed next runs on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class OnnxRuntimeDenoiser:
    """An exported folder's graph as a `Denoiser`."""

    backend = "onnxruntime"
    precision = "fp32"

    def __init__(self, path: Path, threads: int | None = None, provider: str = "CPUExecutionProvider") -> None:
        """Load the graph at `path`; `threads` of the CPU provider, all cores when None.

        Raises: BadInputError when the file is missing; MissingExtraError for a provider that is not installed;
        CorruptArtifactError when ONNX Runtime refuses the graph.
        """
        import onnxruntime

        if not path.is_file():
            raise BadInputError(f"exported model not found: `{path}`", "run `edgediff export` first")
        if provider not in available_providers():
            raise MissingExtraError("onnxruntime-gpu", "gpu", f"ONNX Runtime's {provider}")
        try:
            self.session = onnxruntime.InferenceSession(str(path), session_options(threads), providers=[provider])
        except Exception as error:  # ONNX Runtime raises classes of its own that share no public base
            raise CorruptArtifactError(
                f"ONNX Runtime cannot load: `{path}`", " ".join(str(error).split())[:200]
            ) from error
        self.types = {found.name: TYPES[found.type] for found in self.session.get_inputs()}
        self.shapes = {found.name: found.shape for found in self.session.get_inputs()}
        self.device = DEVICES[provider]

    def __call__(self, sample: Tensor, timestep: Tensor, **conditioning: Tensor) -> Tensor:
        """See `Denoiser`.

        Raises: BadInputError for a shape that the graph was not exported with.
        """
        inputs = {"sample": sample, "timestep": timestep, **conditioning}
        feeds = {name: value.cpu().numpy().astype(self.types[name]) for name, value in inputs.items()}
        for name, value in feeds.items():
            sides = zip(self.shapes[name], value.shape, strict=True)
            if any(isinstance(exported, int) and exported != given for exported, given in sides):
                raise BadInputError(
                    f"graph does not accept {name} of shape {value.shape}, it was exported for {self.shapes[name]}",
                    "only the batch may change: text embeddings must have the length of the stock pipeline's",
                )
        (prediction,) = self.session.run(None, feeds)
        return torch.from_numpy(prediction).to(sample.device)
