"""The layout of a run folder, said once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["teacher", "pruned", "student"]
ROLES: tuple[Role, ...] = ("teacher", "pruned", "student")


@dataclass(frozen=True)
class Run:
    """A run folder; whatever a stage reads or writes in it has its place here.

    `onnx/<role>/` and `engine/<backend>/` are folders of their own because each is shipped, hashed and skipped alone.
    """

    path: Path
    whole: Run | None = None  # the run that it is a part of, an assistant's

    @property
    def recipe(self) -> Path:
        """The resolved recipe, every default written out."""
        return self.path / "recipe.yaml"

    @property
    def pruned(self) -> Path:
        """Stock diffusers pipeline of the student as cut from the teacher."""
        return self.path / "pruned"

    @property
    def student(self) -> Path:
        """Stock diffusers pipeline of the distilled student (averaged weights)."""
        return self.path / "student"

    @property
    def checkpoints(self) -> Path:
        """Resumable training state."""
        return self.path / "checkpoints"

    def assistant(self, place: int) -> Run:
        """The run of a teacher assistant, counted from 0: `pruned/`, `student/`, `train.jsonl`."""
        return Run(self.path / "assistants" / str(place), whole=self)

    def pruning(self, way: str) -> Path:
        """The run folder of one way of pruning, of those that are compared."""
        return self.path / "prunings" / way.replace(", ", "-")

    @property
    def comparison(self) -> Path:
        """Ways of pruning side by side (`results.PruningComparison`)."""
        return self.path / "comparison.json"

    @property
    def encoded(self) -> Path:
        """Latents and text embeddings of the data, which every stage shares, those of assistants too."""
        return self.whole.encoded if self.whole else self.path / "encoded"

    @property
    def targets(self) -> Path:
        """Cached teacher targets, unless the recipe names another folder for them."""
        return self.path / "targets"

    @property
    def train_log(self) -> Path:
        """One JSON line a training step."""
        return self.path / "train.jsonl"

    def onnx(self, role: Role) -> Path:
        """Exported folder: model.onnx, config.json, scheduler_config.json, parity.json, manifest.json."""
        return self.path / "onnx" / role

    def engine(self, backend: str) -> Path:
        """Engine folder: model.engine, build.json, manifest.json."""
        return self.path / "engine" / backend

    def built(self, backends: Iterable[str]) -> list[str]:
        """Return those of the backends whose engine stands here."""
        return [backend for backend in backends if (self.engine(backend) / "manifest.json").is_file()]

    @property
    def profile(self) -> Path:
        """Latency table of this machine (`budgets.table`), where a budget needs one and the recipe names none."""
        return self.path / "profile.json"

    @property
    def latency(self) -> Path:
        """Latency table (`results.Latency`)."""
        return self.path / "latency.json"

    @property
    def quality(self) -> Path:
        """Quality table (`results.Quality`)."""
        return self.path / "quality.json"

    def samples(self, role: Role) -> Path:
        """First images of the quality evaluation, as `samples` (N, C, H, W) uint8 in a safetensors file."""
        return self.path / "samples" / f"{role}.safetensors"

    @property
    def diagnosis(self) -> Path:
        """What `diagnose` leaves: diagnosis.json (`results.Diagnosis`), error_map.safetensors, pictures, manifest.json.

        The map is of student against teacher: `timesteps` (T,), `squared_error` (T, H, W).
        """
        return self.path / "diagnosis"

    @property
    def report(self) -> Path:
        """The report for machines (`results.Report`); beside it report.html and README.md."""
        return self.path / "report.json"
