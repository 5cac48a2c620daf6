"""TinyFusion (Fang et al., CVPR 2025): learn which blocks a transformer can do without once it is trained again.

A choice that hurts least right after the cut is not the one that recovers best. So a distribution over choices is
learned together with a weight update that stands for the training to come, and both are judged by the diffusion loss.
The update is thrown away afterwards; the likeliest choice stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from edgediff.data.order import step_generator, visited
from edgediff.diffusion import schedule
from edgediff.diffusion.noising import prediction_target
from edgediff.errors import BadInputError, StageFailedError
from edgediff.families import Family
from edgediff.pruning.blocks.streams import map_streams
from edgediff.recipe import TinyFusionConfig

GRAD_CLIP = 1.0  # largest norm of the gradient, the authors'
LORA_GAIN = 2.0  # alpha / rank, the authors'


@dataclass(frozen=True)
class LearnedDepth:
    """What was learned.

    Attributes:
        removed: the blocks that the likeliest choice lacks, in the order in which they run.
        stay: block → probability of staying, in [0, 1].
    """

    removed: tuple[str, ...]
    stay: dict[str, float]


class LocalChoice(nn.Module):
    """A categorical distribution over the ways to keep N of M neighbouring blocks, uniform at first.

    Masks (C, M) hold a row of ones and zeros for each of the C = M! / (N! (M − N)!) ways.
    """

    masks: Tensor

    def __init__(self, blocks: Sequence[str], keep: int) -> None:
        """Lay out the masks that keep `keep` of the blocks."""
        super().__init__()
        self.blocks = tuple(blocks)
        kept = torch.tensor(list(combinations(range(len(blocks)), keep)), dtype=torch.long)
        self.register_buffer("masks", torch.zeros(len(kept), len(blocks)).scatter_(1, kept, 1.0))
        self.logits = nn.Parameter(torch.zeros(len(kept)))

    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """Return the gates (M,) of one draw: exactly 0 and 1, with the gradient of their relaxation.

        Straight-through Gumbel-softmax (Jang et al. 2017); the lower the temperature, the nearer the gradient is to
        that of the draw itself, and the noisier.
        """
        uniform = torch.rand(len(self.logits), generator=generator).to(self.logits.device)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7)))
        soft = torch.softmax((self.logits + gumbel) / temperature, dim=0)
        hard = nn.functional.one_hot(soft.argmax(), len(soft)).to(soft.dtype)
        return (hard + soft - soft.detach()) @ self.masks

    @torch.no_grad()
    def stay(self) -> dict[str, float]:
        """Return the probability of staying, per block."""
        marginal = torch.softmax(self.logits, dim=0) @ self.masks
        return dict(zip(self.blocks, marginal.tolist(), strict=True))

    @torch.no_grad()
    def removed(self) -> list[str]:
        """Return the blocks that the likeliest way lacks."""
        mask = self.masks[self.logits.argmax()]
        return [block for block, kept in zip(self.blocks, mask.tolist(), strict=True) if not kept]


class LowRankUpdate(nn.Module):
    """ΔW = gain · U D of a linear layer (LoRA, Hu et al. 2022), which adds nothing until it is trained: U is zero."""

    def __init__(self, layer: nn.Linear, rank: int, generator: torch.Generator) -> None:
        """Draw D (rank, in) from N(0, 1 / in), so that what it gives is as large as what it gets."""
        super().__init__()
        device = layer.weight.device
        down = torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return ΔW x: (..., in) → (..., out)."""
        return LORA_GAIN * (x @ self.down.T) @ self.up.T


def learn_depth(
    model: ModelMixin,
    family: Family,
    keep: int,
    settings: TinyFusionConfig,
    *,
    x0: Tensor,
    scheduler: Any,
    conditioning: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    on_step: Callable[[float], None] = lambda loss: None,
) -> LearnedDepth:
    """Return which of the model's blocks go, learned on a copy; the model is left untouched.

    Args: keep: how many of the removable blocks stay, over all local groups alike.
          x0: (N, C, H, W) clean images in [-1, 1] or latents, each seen equally often.
          scheduler: the teacher's noise schedule.
          conditioning: further arguments of the forward, one row per image.
          seed: of the images' order, noise, timesteps, draws and updates.
          on_step: called with the loss after every step.

    Raises: BadInputError when the model's blocks do not run one after another on one residual stream;
    StageFailedError at the first loss that is not finite.
    """
    blocks = family.blocks(model.config)
    check_learnable(blocks)
    twin: Any = copy.deepcopy(model).float().eval()  # no dropout: it would blame blocks for its own noise
    device = twin.device
    choices = [LocalChoice(*group).to(device) for group in local_groups(blocks, keep, settings.group_size)]
    update = _recovery(twin, settings, seed)
    logits = [choice.logits for choice in choices]
    gates: dict[str, Tensor] = {}
    for block in blocks:
        twin.get_submodule(block).register_forward_hook(_gate(gates, block), with_kwargs=True)
    optimizer = torch.optim.AdamW(
        [
            {"params": update, "lr": settings.learning_rate},
            {"params": logits, "lr": settings.gate_learning_rate},
        ],
        weight_decay=0.0,
    )
    for step in range(settings.steps):
        generator = step_generator(seed, step)
        temperature = _annealed(settings.temperature, step, settings.steps)
        entries = torch.arange(step * settings.batch_size, (step + 1) * settings.batch_size)
        images = visited(entries, count=len(x0), seed=seed)
        rows = {name: value[images].to(device) for name, value in (conditioning or {}).items()}
        with torch.enable_grad():
            for choice in choices:
                gates.update(zip(choice.blocks, choice.sample(temperature, generator).unbind(), strict=True))
            loss = _diffusion_loss(twin, family, x0[images], scheduler, rows, generator)
            if not torch.isfinite(loss):
                raise StageFailedError(
                    f"loss of the learned depth is not finite at step {step}: {loss.item()}",
                    "lower `prune.depth.tinyfusion.learning_rate`",
                )
            optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_([*update, *logits], GRAD_CLIP)
        optimizer.step()
        on_step(loss.item())
    removed = {block for choice in choices for block in choice.removed()}
    stay = {block: value for choice in choices for block, value in choice.stay().items()}
    return LearnedDepth(tuple(block for block in blocks if block in removed), stay)


def check_learnable(blocks: Sequence[str]) -> None:
    """Find out, from names alone, whether blocks can be gated one by one.

    Raises: BadInputError naming the first that cannot.
    """
    joined = [block for block in blocks if "+" in block]
    if joined:
        raise BadInputError(
            f"tinyfusion needs blocks that can be bypassed one by one, not so: {joined[0]}",
            "use laptop_diff or oracle, which compare whole models",
        )


def local_groups(blocks: Sequence[str], keep: int, size: int) -> list[tuple[tuple[str, ...], int]]:
    """Return neighbouring blocks in groups of `size`, the last one smaller if it must, and how many of each stay.

    What stays is spread over the groups as evenly as whole blocks allow: 14 of 28 in groups of 4 is 2:4 everywhere, and
    19 of 28 in groups of 2 is 1:2 in nine of them.
    """
    total = len(blocks)
    bounds = [*range(0, total, size), total]
    quota = [(2 * end * keep + total) // (2 * total) for end in bounds]  # of everything before `end`, rounded
    return [(tuple(blocks[start:end]), quota[i + 1] - quota[i]) for i, (start, end) in enumerate(pairwise(bounds))]


def _recovery(twin: nn.Module, settings: TinyFusionConfig, seed: int) -> list[nn.Parameter]:
    """Return the parameters of the weight update that stands for later training, attached to the model."""
    twin.requires_grad_(settings.recovery == "full")
    if settings.recovery != "lora":
        return list(twin.parameters()) if settings.recovery == "full" else []
    generator = torch.Generator().manual_seed(seed)
    updates = []
    for layer in [module for module in twin.modules() if isinstance(module, nn.Linear)]:
        update = LowRankUpdate(layer, settings.rank, generator)
        layer.register_forward_hook(lambda layer, args, output, update=update: output + update(args[0]))
        updates.append(update)
    return [parameter for update in updates for parameter in update.parameters()]


def _gate(gates: Mapping[str, Tensor], block: str) -> Callable[..., Any]:
    """Return a hook that lets a block act, or lets its input pass it by: g · block(x) + (1 − g) · x."""

    def mix(before: Tensor, after: Tensor) -> Tensor:
        if before.shape != after.shape:
            raise BadInputError(
                f"tinyfusion needs blocks whose input and output have one shape, not so: {block}",
                "use laptop_diff or oracle, which compare whole models",
            )
        return gates[block] * after + (1 - gates[block]) * before

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return map_streams(mix, args, kwargs, output)

    return hook


def _annealed(temperature: tuple[float, float], step: int, steps: int) -> float:
    first, last = temperature
    return first + (last - first) * step / max(steps - 1, 1)


def _diffusion_loss(
    model: nn.Module,
    family: Family,
    x0: Tensor,
    scheduler: Any,
    conditioning: Mapping[str, Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Return the mean squared error of the prediction at a timestep of its own for every image."""
    device = next(model.parameters()).device
    first = schedule.cleanest(scheduler)
    timesteps = torch.randint(first, first + scheduler.config.num_train_timesteps, (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    clean = x0.float()
    target = prediction_target(scheduler, clean, noise, timesteps).to(device)
    sample = schedule.add_noise(scheduler, clean, noise, timesteps).to(device)
    return nn.functional.mse_loss(family.prediction(model, sample, timesteps.to(device), **conditioning), target)
