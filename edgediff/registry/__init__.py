"""Known teachers, one YAML file each: what they are, who publishes them and how well they are said to do.

The weights are not here. `hub` finds them in this machine's cache or fetches them.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from edgediff.recipe import Config

FOLDER = Path(str(resources.files("edgediff") / "registry"))


class Score(Config):
    """One published figure and where it stands."""

    metric: str
    value: float
    data: str  # which, and how many images
    setting: str = ""  # sampler, steps, guidance, where the source says them
    source: str


class Entry(Config):
    """One published teacher. What no stored source confirms (a hash, a score) is left out, never guessed."""

    about: str
    paper: str
    licence: str  # as its page names it
    gated: bool = False  # whether its page wants the licence accepted first
    hub_id: str | None  # None: nobody publishes it as a diffusers pipeline
    withdrawn: str | None = Field(None, pattern=r"\d{4}-\d{2}")  # the month in which `hub_id` went
    mirrors: tuple[str, ...] = ()
    safetensors: bool = True  # False: its page had pickled weights only when the entry was written
    how_to_get: str = ""  # for what cannot be fetched
    sha256: dict[str, tuple[str, ...]] = Field({})  # file → the hashes it was published with
    resolution: int = Field(gt=0)  # pixels, of a side
    params: int = Field(gt=0)  # of the denoising model
    scores: tuple[Score, ...] = ()
    class_name: Literal["UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "SD3Transformer2DModel"]
    component: Literal["unet", "transformer"]
    scheduler: dict[str, Any]
    config: dict[str, Any]

    @property
    def prediction_type(self) -> str:
        """What the model predicts; flow matching schedulers do not say it, for they know only one."""
        return self.scheduler.get("prediction_type", "flow_prediction")

    @property
    def sample(self) -> str:
        """Return channels, height and width of what the model denoises: pixels, or latents of an autoencoder."""
        return f"{self.config['in_channels']}×{self.config['sample_size']}×{self.config['sample_size']}"

    @property
    def repositories(self) -> tuple[str, ...]:
        """Every repository that holds it or once did, the publisher's own first."""
        return ((self.hub_id,) if self.hub_id else ()) + self.mirrors

    @property
    def sources(self) -> tuple[str, ...]:
        """The repositories that it can still be fetched from."""
        return self.mirrors if self.withdrawn else self.repositories


def names() -> list[str]:
    """Return the names of all registered teachers, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def entry(name: str) -> Entry:
    """Return a registered teacher by its name, which must be one of `names`."""
    return Entry.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))
