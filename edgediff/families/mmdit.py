"""`SD3Transformer2DModel`, the MMDiT of Stable Diffusion 3 and 3.5 (Esser et al. 2024): flow matching from text."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor

from edgediff.errors import BadInputError
from edgediff.families.base import Config, DepthCut, Widths
from edgediff.families.coupling import Group
from edgediff.families.transformers import (
    BLOCKS,
    MODULATIONS,
    OUTPUT_MODULATIONS,
    QKV,
    Transformer,
    coupled,
    example_sample,
    example_timesteps,
    feed_forward,
    heads,
    kept_blocks,
    paths,
)

TEXT_TOKENS = 77 + 256  # of the CLIP encoders, then of T5, as the stock pipeline gives them
DUAL_MODULATIONS = MODULATIONS + 3  # shift, scale and gate of the second attention
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


class MMDiT(Transformer):
    """Image and text are two streams of equal width that meet in the attention alone, so each keeps its own channels.

    The prediction is the flow velocity, noise − x0.
    """

    name: ClassVar[str] = "mmdit"
    model_class: ClassVar[Any] = SD3Transformer2DModel
    fixed_outputs: ClassVar[tuple[str, ...]] = ("proj_out",)
    optional_parts: ClassVar[tuple[str, ...]] = ("text_encoder_3", "tokenizer_3")  # T5
    autoencoder_keys: ClassVar[tuple[str, ...]] = ("shift_factor",)

    def levels(self, config: Config) -> Widths:
        """Return `transformer_blocks` → channels of either stream, which are those of all heads of a block.

        Raises: BadInputError when the text's stream has another width: no forward pass of the stock model can run then.
        """
        levels = super().levels(config)
        if config["caption_projection_dim"] != levels[BLOCKS]:
            raise BadInputError(
                f"caption_projection_dim is not the width of the blocks: "
                f"{config['caption_projection_dim']}, {levels[BLOCKS]}"
            )
        return levels

    def student_config(self, teacher_config: Config, widths: Widths) -> dict[str, Any]:
        """Return the teacher's config with as many heads as fill the width, and a text stream of that width."""
        config = super().student_config(teacher_config, widths)
        return {**config, "caption_projection_dim": widths[BLOCKS]}

    def coupled_groups(self, config: Config) -> list[Group]:
        """Return the two streams, the conditioning, and every attention's heads and feed-forward's channels."""
        width = self.levels(config)[BLOCKS]
        *joint, last = blocks = super().blocks(config)
        dual = [block for i, block in enumerate(blocks) if i in config["dual_attention_layers"]]
        attentions = [*paths(blocks, "attn"), *paths(dual, "attn2")]
        image = coupled(
            width,
            {
                "pos_embed.proj": 1,
                **dict.fromkeys(paths(blocks, "norm1.linear"), MODULATIONS),
                **dict.fromkeys(paths(dual, "norm1.linear"), DUAL_MODULATIONS),
                **dict.fromkeys([*paths(attentions, "to_out.0"), *paths(blocks, "ff.net.2")], 1),
                "norm_out.linear": OUTPUT_MODULATIONS,
            },
            [*paths(attentions, *QKV), *paths(blocks, "ff.net.0.proj"), "proj_out"],
            buffers=(("pos_embed.pos_embed", 2),),
        )
        text = coupled(
            width,
            {
                "context_embedder": 1,
                **dict.fromkeys(paths(joint, "norm1_context.linear"), MODULATIONS),
                f"{last}.norm1_context.linear": OUTPUT_MODULATIONS,
                **dict.fromkeys(paths(joint, "attn.to_add_out", "ff_context.net.2"), 1),
            },
            [*paths(blocks, *(f"attn.{name}" for name in ADDED)), *paths(joint, "ff_context.net.0.proj")],
        )
        embedders = ("time_text_embed.timestep_embedder", "time_text_embed.text_embedder")
        conditioning = coupled(
            width,
            paths(embedders, "linear_2"),
            [*paths(blocks, "norm1.linear", "norm1_context.linear"), "norm_out.linear"],
        )
        layers = [*paths(blocks, "ff"), *paths(joint, "ff_context")]
        return [
            *(image, text, conditioning),
            *(coupled(width, [f"{embedder}.linear_1"], [f"{embedder}.linear_2"]) for embedder in embedders),
            *(heads(width, f"{block}.attn", QKV + ADDED, ("to_out.0", "to_add_out")) for block in joint),
            heads(width, f"{last}.attn", QKV + ADDED),
            *(heads(width, f"{block}.attn2") for block in dual),
            *(feed_forward(width, layer) for layer in layers),
        ]

    def blocks(self, config: Config) -> tuple[str, ...]:
        """Return all blocks but the last: that one ends the text's stream and has no layers for its output."""
        return super().blocks(config)[:-1]

    def without_blocks(self, config: Config, removed: Collection[str]) -> DepthCut:
        """Return the model of the other blocks, in their order; those with a second attention keep it.

        Raises: BadInputError for names that are not among `blocks`.
        """
        cut = super().without_blocks(config, removed)
        dual = [new for new, old in enumerate(kept_blocks(config, removed)) if old in config["dual_attention_layers"]]
        return DepthCut({**cut.config, "dual_attention_layers": tuple(dual)}, cut.sources)

    def example_inputs(
        self, config: Config, batch_size: int = 1, resolution: int | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return a noisy sample, its timestep, and a text's embeddings, all float32 and, but the timestep, N(0, 1).

        `sample` (B, C, S, S), `timestep` (B,) in 0 to 1000, `encoder_hidden_states` (B, 333, joint_attention_dim),
        `pooled_projections` (B, pooled_projection_dim).
        """
        generator = torch.Generator().manual_seed(0)
        inputs = {
            "sample": example_sample(config, batch_size, resolution, generator),
            "timestep": example_timesteps(batch_size),
            "encoder_hidden_states": torch.randn(
                batch_size, TEXT_TOKENS, config["joint_attention_dim"], generator=generator
            ),
            "pooled_projections": torch.randn(batch_size, config["pooled_projection_dim"], generator=generator),
        }
        return {name: value.to(device) for name, value in inputs.items()}

    def prediction(self, model: torch.nn.Module, sample: Tensor, timestep: Tensor, **conditioning: Tensor) -> Tensor:
        """Return the velocity (B, C, H, W) at timestep (B,), float: 1000 times the share of noise."""
        return model(sample, timestep=timestep, **conditioning, return_dict=False)[0]

    def input_names(self, config: Config) -> tuple[str, ...]:
        """Return `sample`, `timestep`, `encoder_hidden_states` and `pooled_projections`."""
        return ("sample", "timestep", "encoder_hidden_states", "pooled_projections")
