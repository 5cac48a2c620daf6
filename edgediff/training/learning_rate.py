"""The learning rate of every step."""

from __future__ import annotations

import math

from edgediff.recipe import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of step `step` (from 0): linear warm-up, then constant or a cosine to 0."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.lr_schedule == "constant":
        return config.learning_rate * warmup
    progress = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def unreached_rate(config: TrainingConfig) -> list[str]:
    """Say, where the warm-up is as long as the training, that the learning rate is never reached."""
    if config.warmup_steps < config.steps:
        return []
    reached = learning_rate(config.steps - 1, config.model_copy(update={"lr_schedule": "constant"}))
    return [
        f"the learning rate only rises to {reached:.2g}, not to {config.learning_rate:.2g}: warmup_steps "
        f"({config.warmup_steps}) takes all of the {config.steps} steps"
    ]
