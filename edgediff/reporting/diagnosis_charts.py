"""What the report shows of a diagnosis: charts over the timesteps, maps of the error, pictures of single images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from edgediff import diagnostics
from edgediff.output import number
from edgediff.reporting import figures
from edgediff.reporting.pictures import png, svg
from edgediff.results import Diagnosis


def diagnosis_charts(folder: Path, diagnosis: Diagnosis | None, latent: bool) -> dict[str, Any] | None:
    """Return charts over the timesteps, error maps and pictures of single images; nothing without a diagnosis."""
    if diagnosis is None:
        return None
    pictures = diagnosis.pictures
    return {
        "charts": _by_timestep(diagnosis, latent),
        "maps": _error_maps(folder / diagnostics.MAP),
        "images": [
            {
                "name": f"Image {index:,} of {diagnosis.reference.name}",
                "picture": png(
                    (folder / file).read_bytes(),
                    f"Image {index:,} at timesteps {', '.join(map(str, pictures.timesteps))}, "
                    f"from top to bottom: {', '.join(pictures.rows)}",
                ),
            }
            for index, file in zip(pictures.images, pictures.files, strict=True)
        ],
        "key": _error_key(pictures.low, pictures.high),
    }


def _by_timestep(diagnosis: Diagnosis, latent: bool) -> list[dict[str, Any]]:
    of_x0, values = ("RMSE, of latents", None) if latent else ("RMSE; dotted: the range of images", 2.0)
    wanted = [
        (f"Error of the prediction (MSE to the teacher's {diagnosis.prediction_type})", "mse", True, None),
        (f"What it does to x0 ({of_x0})", "x0_rmse", True, values),
        ("Slope by timestep (1: a perfect student)", "slope", False, 1.0),
        ("Intercept by timestep (0: a perfect student)", "intercept", False, 0.0),
    ]

    def of_both(key: str) -> dict[str, list[float]]:
        return {role: [getattr(error, key) for error in model.errors] for role, model in diagnosis.models.items()}

    timesteps = [error.timestep for error in diagnosis.models["student"].errors]
    charts = []
    for title, name, logarithmic, target in wanted:
        lines, spreads = of_both(name), None if logarithmic else of_both(f"{name}_std")
        chart = figures.by_timestep(timesteps, lines, spreads=spreads, logarithmic=logarithmic, target=target)
        ends = "; ".join(f"{role} from {number(line[0])} to {number(line[-1])}" for role, line in lines.items())
        alt = f"{title} over the timesteps {timesteps[0]} to {timesteps[-1]}: {ends}"
        charts.append({"title": title, "picture": svg(chart, alt)})
    return charts


def _error_maps(path: Path) -> dict[str, Any]:
    """Return the maps by timestep and the key of their colours."""
    tensors = load_file(path)
    errors = tensors["squared_error"]
    low, high = figures.error_range(errors)
    maps = [
        {
            "timestep": int(timestep),
            "mean": f"{values.mean():.2g}",
            "picture": png(
                figures.error_map(values, low, high),
                f"Squared error at timestep {timestep}: mean {values.mean():.2g}, at most {values.max():.2g}",
            ),
        }
        for timestep, values in zip(tensors["timesteps"], errors, strict=True)
    ]
    return {"maps": maps, "key": _error_key(low, high)}


def _error_key(low: float, high: float) -> dict[str, Any]:
    picture = png(figures.error_key(low, high), f"Colours from {low:.2g}, dark, to {high:.2g}, bright, logarithmic")
    return {"picture": picture, "low": f"{low:.2g}", "high": f"{high:.2g}"}
