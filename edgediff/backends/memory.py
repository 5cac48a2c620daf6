"""Peak memory of running one model, measured in a process of its own: `python -m edgediff.backends.memory`.

The process imports what the backend needs and nothing else, so ONNX Runtime's figure is free of PyTorch; both include
the interpreter and the libraries, as they will on the device.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edgediff.errors import StageFailedError


def peak_memory_mib(backend: str, path: Path, *, batch_size: int, threads: int) -> float:
    """Return the largest resident set, in MiB, of a fresh process that runs the model twice.

    Args: backend: `pytorch` (path: a pipeline folder) or `onnxruntime` (path: a graph).
    Raises: StageFailedError with the last line the process said when it fails.
    """
    command = [sys.executable, "-m", "edgediff.backends.memory", backend, str(path), str(batch_size), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StageFailedError(f"measuring the memory of `{path}` on {backend} failed", last)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


def run_pytorch(path: Path, batch_size: int, threads: int) -> None:
    """Load a pipeline folder's model and run it twice on the CPU."""
    import torch

    from edgediff import model_folder
    from edgediff.backends.pytorch import PyTorchDenoiser

    torch.set_num_threads(threads)
    loaded = model_folder.load(path)
    denoiser = PyTorchDenoiser(loaded.model, loaded.family)
    for _ in range(2):
        denoiser(**loaded.family.example_inputs(loaded.model.config, batch_size))


def run_onnxruntime(path: Path, batch_size: int, threads: int) -> None:
    """Load a graph and run it twice on the CPU, on zeros of the shapes it asks for."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    feeds = {
        node.name: np.zeros([batch_size, *node.shape[1:]], dtype=types[node.type]) for node in session.get_inputs()
    }
    for _ in range(2):
        session.run(None, feeds)


def main(backend: str, path: str, batch_size: str, threads: str) -> None:
    """Run one model and print the peak as JSON."""
    run = {"pytorch": run_pytorch, "onnxruntime": run_onnxruntime}[backend]
    run(Path(path), int(batch_size), int(threads))
    print(json.dumps({"peak_mib": own_peak_mib()}))


def own_peak_mib() -> float:
    """Return the largest resident set of this process so far, in MiB.

    On Linux from /proc, because `getrusage` starts from the size of the parent that forked this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main(*sys.argv[1:])
