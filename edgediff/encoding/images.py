"""Latents with what a model is told of their images: what a latent model trains on once everything is encoded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from edgediff.artifacts import digest
from edgediff.data.conditioned import Conditions, check_same_number
from edgediff.encoding.latents import LatentCache

LEARNED_FROM = "samples"  # their modes before: another training under the same recipe


class LatentImages:
    """`Images` of a latent model: its x0 are latents."""

    def __init__(self, latents: LatentCache, conditions: Conditions | None = None) -> None:
        """Join latents with prompts or class labels of the same images, in the same order.

        Raises: BadInputError when they are of different numbers of images.
        """
        if conditions is not None:
            check_same_number(latents, conditions)
        self.latents, self.conditions = latents, conditions

    @property
    def name(self) -> str:
        """What people call it, with its split."""
        return f"{self.latents.name} as latents"

    @property
    def sha256(self) -> str:
        """Digest of the latents, of how they are learned from, and of what is told of them."""
        return digest([self.latents.sha256, LEARNED_FROM, self.conditions.sha256 if self.conditions else None])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of all latents."""
        return self.latents.shape

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.latents)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the modes (B, C, h, w) float32 of the latents of images (B,).

        Raises: CorruptArtifactError that names a damaged shard, here and in all that follow.
        """
        return self.latents.mean(indices)

    def drawn(self, indices: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return a sample (B, C, h, w) float32 of the latents of images (B,), as `LatentCache.drawn` does."""
        return self.latents.drawn(indices, seeds)

    def conditioning(self, indices: Tensor) -> dict[str, Tensor]:
        """Return further arguments of the model's forward, (B, ...) each, of the images whose latents these are."""
        if self.conditions is None:
            return {}
        told = self.conditions(self.latents.shown(indices))
        return {**told, "time_ids": self.latents.time_ids(indices)} if self.conditions.framing else told
