"""`DiTTransformer2DModel`, the class-conditional DiT (Peebles & Xie 2023), often with a learned variance."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.models.embeddings import LabelEmbedding
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor

from edgediff.families.base import Config
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
    paths,
)

GATED = ("geglu", "swiglu")  # activations whose projection holds values and gates


class DiT(Transformer):
    """Labels are the caller's: none is dropped at random, not even in training; the last embedding is "no label"."""

    name: ClassVar[str] = "dit"
    model_class: ClassVar[Any] = DiTTransformer2DModel
    fixed_outputs: ClassVar[tuple[str, ...]] = ("proj_out_2",)

    def coupled_groups(self, config: Config) -> list[Group]:
        """Return the residual stream, the conditioning, and every block's heads and feed-forward channels.

        The stream's channels are spread, because a student computes position embeddings of its own width: its sines
        and cosines then stand where the teacher's of about the same frequency stood. On a small trained teacher the
        most important channels wherever they stand always gave a larger error, right after the cut and after a short
        distillation; the nearest frequencies whatever their importance did at half the width, and rarely a smaller one.

        The conditioning is one group over all blocks, although every block has embedders of its own: they are copies
        of one another where weights come from the original implementation, and stay so, and the output layer reads
        those of the first block, whichever that is after depth pruning.
        """
        width, blocks = self.levels(config)[BLOCKS], self.blocks(config)
        embedders, modulations = paths(blocks, "norm1.emb"), paths(blocks, "norm1.linear")
        affine = ["norm3"] if config["norm_elementwise_affine"] else []
        stream = coupled(
            width,
            {
                "pos_embed.proj": 1,
                **dict.fromkeys(modulations, MODULATIONS),
                **dict.fromkeys(paths(blocks, "attn1.to_out.0", "ff.net.2", *affine), 1),
                "proj_out_1": OUTPUT_MODULATIONS,
            },
            [*paths(blocks, *(f"attn1.{name}" for name in QKV), "ff.net.0.proj"), "proj_out_2"],
            spread=True,
        )
        embedding = coupled(
            width, paths(embedders, "timestep_embedder.linear_1"), paths(embedders, "timestep_embedder.linear_2")
        )
        conditioning = coupled(
            width,
            paths(embedders, "timestep_embedder.linear_2", "class_embedder.embedding_table"),
            [*modulations, "proj_out_1"],
        )
        chunks = 2 if config["activation_fn"] in GATED else 1
        return [
            *(stream, embedding, conditioning),
            *(heads(width, f"{block}.attn1") for block in blocks),
            *(feed_forward(width, f"{block}.ff", chunks) for block in blocks),
        ]

    def example_inputs(
        self, config: Config, batch_size: int = 1, resolution: int | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return `sample` (B, C, S, S) from N(0, 1), `timestep` (B,) int64 and `class_labels` (B,) int64."""
        inputs = {
            "sample": example_sample(config, batch_size, resolution, torch.Generator().manual_seed(0)),
            "timestep": example_timesteps(batch_size).long(),
            "class_labels": torch.arange(batch_size) % config["num_embeds_ada_norm"],
        }
        return {name: value.to(device) for name, value in inputs.items()}

    def prediction(self, model: torch.nn.Module, sample: Tensor, timestep: Tensor, **conditioning: Tensor) -> Tensor:
        """Return the prediction (B, C, H, W) in the model's own prediction type, without a learned variance.

        In training mode every block of the stock model would replace some labels by "no label", each by a draw of its
        own; the label embedders therefore stay in evaluation mode, which changes nothing else.
        """
        for module in model.modules():
            if isinstance(module, LabelEmbedding):
                module.eval()
        output = model(sample, timestep, **conditioning, return_dict=False)[0]
        return output[:, : sample.shape[1]]

    def classes(self, config: Config) -> int:
        """Return how many classes the model knows, without the embedding that means none."""
        return config["num_embeds_ada_norm"]

    def unconditional(self, config: Config, count: int) -> dict[str, Tensor]:
        """Return the label of the embedding that means no class, (count,) int64."""
        return {"class_labels": torch.full((count,), config["num_embeds_ada_norm"])}

    def input_names(self, config: Config) -> tuple[str, ...]:
        """Return `sample`, `timestep` and `class_labels`."""
        return ("sample", "timestep", "class_labels")

    def original_params(self, config: Config) -> int:
        """Return what `Family.original_params` does.

        There one timestep and one label embedder serve all blocks, where diffusers gives every block its own, and the
        position embedding counts, although it is not trained.
        """
        model: Any = self.build(config, "meta")
        embedder = sum(parameter.numel() for parameter in model.transformer_blocks[0].norm1.emb.parameters())
        shared = (config["num_layers"] - 1) * embedder
        return super().original_params(config) - shared + model.pos_embed.pos_embed.numel()
