"""Where, when and why a student differs from its teacher: errors by timestep and by place, sharpness of the loss."""

from __future__ import annotations

from pathlib import Path

from edgediff.run import Run

RESULT = "diagnosis.json"


def folder(run: Run) -> Path:
    """Return where `diagnose` leaves its folder: diagnosis.json (`results.Diagnosis`), pictures, manifest.json."""
    return run.path / "diagnosis"
