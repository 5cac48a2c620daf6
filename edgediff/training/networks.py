"""How the diffusers networks of a model run while they are trained: recomputing activations, compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from edgediff.errors import BadInputError, StageFailedError
from edgediff.recipe import TrainingConfig

TOLD = 200  # characters of what the compiler says, which may be pages


@contextmanager
def running_as(model: nn.Module, config: TrainingConfig) -> Iterator[None]:
    """Give the networks inside `model` gradient checkpointing and compilation, as configured, within the block.

    Raises: BadInputError for a network that knows no gradient checkpointing; StageFailedError where it cannot be
    compiled, which shows in its first forward.
    """
    networks: list[Any] = [module for module in model.modules() if hasattr(module, "enable_gradient_checkpointing")]
    with ExitStack() as undone:
        for network in networks if config.gradient_checkpointing else ():
            try:
                network.enable_gradient_checkpointing()
            except ValueError as error:
                raise BadInputError(
                    f"{type(network).__name__} knows no gradient checkpointing",
                    "set `gradient_checkpointing=false`, and save memory with a smaller `batch_size` and more "
                    "`gradient_accumulation`",
                ) from error
            undone.callback(network.disable_gradient_checkpointing)
        for network in networks if config.compile else ():
            # The forward and not the module, whose wrapper would rename every parameter.
            network.forward = torch.compile(network.forward)
            undone.callback(vars(network).pop, "forward")
        if config.compile:
            # An objective may go back through the graph more than once, for the gradient norm of every term.
            undone.enter_context(torch._functorch.config.patch(donated_buffer=False))
        try:
            yield
        except torch._dynamo.exc.TorchDynamoException as error:
            raise StageFailedError(
                f"the network could not be compiled: {' '.join(str(error).split())[:TOLD]}",
                "train with `compile=false`; on a CPU, compiling needs a C++ compiler",
            ) from error
