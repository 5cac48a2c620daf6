"""One file that holds a training's whole state, written atomically: weights, average, optimiser, step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from edgediff.artifacts import atomic_file
from edgediff.errors import CorruptArtifactError
from edgediff.training import processes
from edgediff.training.ema import EMA
from edgediff.training.sharding import cut_like, whole

FILE_NAME = "training.safetensors"


def save(path: Path, *, model: nn.Module, ema: EMA, optimizer: Optimizer, facts: dict[str, Any]) -> None:
    """Write the state after `facts["step"]` finished steps; a kill at any moment leaves the previous file whole.

    All processes of a group call it, for the pieces of tensors that FSDP has cut; the main one writes. What the file
    holds does not depend on how many they are.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    found = {}
    for name, value in tensors.items():
        together = whole(value.detach())
        if processes.is_main():
            found[name] = together.cpu().contiguous()
    if processes.is_main():
        with atomic_file(path) as temporary:
            save_file(found, temporary, metadata={"facts": json.dumps(facts)})


def read_facts(path: Path) -> dict[str, Any]:
    """Return what was saved beside the tensors, without reading them.

    Raises: CorruptArtifactError when the file is not a complete checkpoint.
    """
    try:
        # As for NumPy: for PyTorch the file is opened twice, and between the two a training may put the next one there.
        with safe_open(path, framework="numpy") as file:
            return json.loads(file.metadata()["facts"])
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CorruptArtifactError(
            f"not a complete checkpoint: `{path}`", "delete it to start this stage from its beginning"
        ) from error


def finished_steps(folder: Path) -> int:
    """Return the steps behind the state in a folder of checkpoints; 0 where there is none.

    Raises: CorruptArtifactError when the file is not a complete checkpoint.
    """
    path = folder / FILE_NAME
    return read_facts(path)["step"] if path.exists() else 0


def load(path: Path, *, model: nn.Module, ema: EMA, optimizer: Optimizer) -> None:
    """Put a saved state back into model, average and optimiser; every process of a group reads the file."""
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (safe_open cannot be iterated)
            group, name = key.split(".", 1)
            groups[group][name] = file.get_tensor(key)
    current = model.state_dict()
    model.load_state_dict({name: cut_like(value, current[name]) for name, value in groups["model"].items()})
    for name, value in groups["ema"].items():
        ema.average[name].copy_(cut_like(value, ema.average[name]))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in groups["optimizer"].items():
        index, name = int(key.split(".", 1)[0]), key.split(".", 1)[1]
        # The count of steps is a plain number for every parameter; moments have the parameter's shape.
        state.setdefault(index, {})[name] = value if name == "step" else cut_like(value, parameters[index])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
