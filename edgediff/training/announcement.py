"""What a training says of itself before its first step."""

from __future__ import annotations

from pathlib import Path

from edgediff.output import Output
from edgediff.recipe import TrainingConfig
from edgediff.training import checkpoint, processes
from edgediff.training.facts import changed_settings
from edgediff.training.learning_rate import unreached_rate
from edgediff.training.precision import settled


def announce(stage: str, what: str, config: TrainingConfig, checkpoints: Path, output: Output, *, resume: bool) -> None:
    """Say how long `what` is trained on how many samples an update, and what of its settings may surprise.

    That is what a launcher was told otherwise, a learning rate that is never reached, and, where a training is resumed,
    what is another setting from here on.
    """
    batch = config.global_batch(processes.group().num_processes)
    output.stage(stage, f"{what}, {config.steps} steps of {batch}")
    changed = changed_settings(checkpoints / checkpoint.FILE_NAME, config) if resume else []
    for words in (*processes.overruled(settled(config, processes.device())), *unreached_rate(config), *changed):
        output.say(words)
