"""The contract between a diffusers model class and everything that prunes, trains, exports or runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from edgediff.errors import BadInputError
from edgediff.families.coupling import Group, traced_groups

Config = Mapping[str, Any]
"""A diffusers model config: `model.config`, or the content of its config.json."""

Widths = dict[str, int]
"""Channels of every level, in the order of the config: {"down_blocks.0": 32, "down_blocks.1": 64}."""


@dataclass(frozen=True)
class DepthCut:
    """A stock model of fewer blocks, and where its blocks come from.

    Args: config: the student's.
          sources: module of the student → module of the teacher whose weights it takes, for those whose name changes;
              all other modules have the teacher's names. Names are prefixes, of which the longest counts:
              `transformer_blocks.3`.
    """

    config: dict[str, Any]
    sources: dict[str, str]


class Family(ABC):
    """One model class, said once. Implementations hold no state: everything follows from a config.

    Attributes:
        name: how recipes and reports call the family.
        model_class: the stock diffusers class of teacher and student.
        component: the model's folder in a pipeline.
        fixed_outputs: modules whose output channels belong to the data and are never pruned.
        output_names: names of the exported graph's outputs.
        block_lists: module lists whose entries are the blocks that devices are timed on, the innermost one counting.
        optional_parts: of the stock pipeline, what it also draws without, although its class does not say so.
        autoencoder_keys: what the config of the pipeline's autoencoder must say, as the pipeline cannot draw without.
    """

    name: ClassVar[str]
    model_class: ClassVar[Any]  # a ModelMixin with ConfigMixin, which Python's types cannot say
    component: ClassVar[str] = "unet"
    fixed_outputs: ClassVar[tuple[str, ...]]
    output_names: ClassVar[tuple[str, ...]] = ("out_sample",)
    block_lists: ClassVar[tuple[str, ...]]
    optional_parts: ClassVar[tuple[str, ...]] = ()
    autoencoder_keys: ClassVar[tuple[str, ...]] = ()

    @property
    def class_name(self) -> str:
        """The `_class_name` of the config.json."""
        return self.model_class.__name__

    def build(self, config: Config, device: torch.device | str = "cpu") -> ModelMixin:
        """Return a freshly initialised stock model; on the `meta` device it costs neither memory nor time."""
        with torch.device(device):
            return self.model_class.from_config(dict(config))

    def original_params(self, config: Config) -> int:
        """Return the parameters of this model in the layout of its original implementation, as its papers count."""
        return sum(parameter.numel() for parameter in self.build(config, "meta").parameters())

    @abstractmethod
    def levels(self, config: Config) -> Widths:
        """Return the width of every level that can be pruned.

        Raises: BadInputError when this config uses a feature whose pruning is not supported.
        """

    @abstractmethod
    def granularity(self, config: Config) -> Widths:
        """Return, per level, the number of channels by which its width can change; it divides the width."""

    def axes(self, config: Config) -> list[list[str]]:
        """Return the levels by what can change alone: those of one axis have one width in every student."""
        return [[level] for level in self.levels(config)]

    @abstractmethod
    def student_config(self, teacher_config: Config, widths: Widths) -> dict[str, Any]:
        """Return the config of the stock model with these widths; the teacher's own widths give the teacher's config.

        Raises: BadInputError for unknown or missing levels and for widths that no student of this teacher can have.
        """

    def coupled_groups(self, config: Config) -> list[Group]:
        """Return the channels that stay or go together, every prunable one in a group.

        Found by tracing; families that tracing does not serve (adaptive norms, joint attention) name them by hand.
        """
        inputs = self.example_inputs(config, device="meta")
        return traced_groups(self.build(config, "meta"), inputs, self.fixed_outputs, self.prediction)

    def blocks(self, config: Config) -> tuple[str, ...]:
        """Return the blocks that depth pruning can remove, each on its own, in the order in which they run.

        A name is that of a module of the model, or of several with `+` between them, which a stock config can only drop
        together. Raises: BadInputError when the family has none.
        """
        raise BadInputError(f"depth pruning does not support the family {self.name}", "prune its width")

    def without_blocks(self, config: Config, removed: Collection[str]) -> DepthCut:
        """Return the stock model that lacks these `blocks`.

        Raises: BadInputError for unknown blocks, and for a choice that no stock config can express.
        """
        raise BadInputError(f"depth pruning does not support the family {self.name}", "prune its width")

    def depth_rules(self, config: Config) -> dict[str, Callable[[Config], DepthCut]]:
        """Return the published depth cuts that are made for this config, by name."""
        return {}

    @abstractmethod
    def fixed_slices(self, teacher_config: Config, student_config: Config) -> dict[str, dict[int, list[int]]]:
        """Return the slices that the config dictates, whatever the importance: parameter name → axis → kept indices."""

    @abstractmethod
    def example_inputs(
        self, config: Config, batch_size: int = 1, resolution: int | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return keyword arguments of the model's forward, the same at every call.

        Args: resolution: side of the square sample in pixels (or latents); the config's sample size when None.
        """

    def conditioning_names(self, config: Config) -> tuple[str, ...]:
        """Return the names of what the model takes beside sample and timestep."""
        return self.input_names(config)[2:]

    def classes(self, config: Config) -> int:
        """Return how many classes the model knows, numbered from 0.

        Raises: BadInputError when it is told none.
        """
        raise BadInputError(f"models of the family {self.name} are told no classes")

    def unconditional(self, config: Config, count: int) -> dict[str, Tensor]:
        """Return the class labels that stand for no class, (count,) int64 by argument name.

        Raises: BadInputError when the model has none.
        """
        raise BadInputError(
            f"the family {self.name} has no label for `no class`, so it cannot be guided", "use `guidance_scale=1`"
        )

    def sample_shape(self, config: Config) -> tuple[int, int, int]:
        """Return (C, H, W) of one sample."""
        _, channels, height, width = self.example_inputs(config)["sample"].shape
        return channels, height, width

    @abstractmethod
    def prediction(self, model: torch.nn.Module, sample: Tensor, timestep: Tensor, **conditioning: Tensor) -> Tensor:
        """Return the model's prediction (B, C, H, W) at sample (B, C, H, W) and timestep (B,)."""

    def feature_points(self, config: Config, compared: Sequence[Config]) -> tuple[str, ...]:
        """Return the modules whose outputs feature distillation compares, by name, in the order in which they run.

        Args: config: of the model whose modules they are.
              compared: of all models that are compared, this one among them. Points are where all of these have one, so
                  each model has as many, at the same places of the network and of the same resolutions.
        Raises: BadInputError when the family gives none.
        """
        raise BadInputError(
            f"the family {self.name} gives no feature points",
            "choose losses that look at predictions only, such as place or output",
        )

    def feature_map(self, output: Any, sample: Tensor) -> Tensor:
        """Return the map (B, C_i, H_i, W_i) in what a feature point put out for the model's sample (B, C, H, W)."""
        return output[0] if isinstance(output, tuple) else output  # blocks return skips too

    def feature_shapes(self, config: Config, points: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return (C_i, H_i, W_i) of the maps at these feature points, found on the meta device."""
        with torch.no_grad():
            _, features = self.prediction_and_features(
                self.build(config, "meta").eval(), points, **self.example_inputs(config, device="meta")
            )
        return tuple(tuple(map_.shape[1:]) for map_ in features)

    def feature_widths(self, config: Config, points: Sequence[str]) -> tuple[int, ...]:
        """Return the channels of the maps at these feature points."""
        return tuple(channels for channels, *_ in self.feature_shapes(config, points))

    def prediction_and_features(
        self, model: torch.nn.Module, points: Sequence[str], sample: Tensor, timestep: Tensor, **conditioning: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the prediction and the maps at these feature points, each (B, C_i, H_i, W_i), in their order.

        The hooks stand on the modules themselves and only during the call, so that wrappers that rename modules
        (DistributedDataParallel, torch.compile) change nothing.
        """
        features: list[Tensor] = []

        def record(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            features.append(self.feature_map(output, sample))

        handles = [model.get_submodule(point).register_forward_hook(record) for point in points]
        try:
            prediction = self.prediction(model, sample, timestep, **conditioning)
        finally:
            for handle in handles:
                handle.remove()
        return prediction, tuple(features)

    @abstractmethod
    def input_names(self, config: Config) -> tuple[str, ...]:
        """Return the names of the exported graph's inputs, in the order of the forward's arguments."""
