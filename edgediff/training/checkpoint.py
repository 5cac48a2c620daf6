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
from edgediff.training.ema import EMA

FILE_NAME = "training.safetensors"


def save(path: Path, *, model: nn.Module, ema: EMA, optimizer: Optimizer, facts: dict[str, Any]) -> None:
    """Write the state after `facts["step"]` finished steps; a kill at any moment leaves the previous file whole."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    with atomic_file(path) as temporary:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            temporary,
            metadata={"facts": json.dumps(facts)},
        )


def read_facts(path: Path) -> dict[str, Any]:
    """Return what was saved beside the tensors, without reading them.

    Raises: CorruptArtifactError when the file is not a complete checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
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


def load(path: Path, *, model: nn.Module, ema: EMA, optimizer: Optimizer) -> dict[str, Any]:
    """Put a saved state back into model, average and optimiser; return the saved facts."""
    facts = read_facts(path)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (safe_open cannot be iterated)
            group, name = key.split(".", 1)
            groups[group][name] = file.get_tensor(key)
    model.load_state_dict(groups["model"])
    for name, value in groups["ema"].items():
        ema.average[name].copy_(value)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in groups["optimizer"].items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return facts
