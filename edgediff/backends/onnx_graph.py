"""A model as an ONNX graph of one forward with a dynamic batch, written by PyTorch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from edgediff.families import Family
from edgediff.metrics.cost import parameter_bytes

EXTERNAL_DATA_BYTES = 1_500_000_000  # a protobuf file ends at 2 GB
EXPORT_BATCH = 2  # 1 would be taken for a constant


def write_graph(model: Any, family: Family, path: Path, opset: int) -> None:
    """Write a model's forward to `path`, with the exporter's notes on where every node comes from."""
    names = family.input_names(model.config)
    inputs = family.example_inputs(model.config, EXPORT_BATCH)
    # AUTO, not a named range: diffusers' upsampling asks whether the batch is below 64, which changes nothing in the
    # graph but would be refused as a restriction of the range.
    batch = {0: torch.export.Dim.AUTO}
    with _silent():
        torch.onnx.export(
            _Prediction(model, family, names),
            tuple(inputs[name] for name in names),
            str(path),
            input_names=list(names),
            output_names=list(family.output_names),
            dynamic_shapes=(tuple(batch for _ in names),),
            opset_version=opset,
            dynamo=True,
            external_data=parameter_bytes(model) > EXTERNAL_DATA_BYTES,
        )


def tidy(path: Path) -> None:
    """Name the batch dimension, and drop the exporter's notes: stack traces with the paths of this machine."""
    graph = onnx.load(str(path), load_external_data=False)
    values = [*graph.graph.input, *graph.graph.output, *graph.graph.value_info]
    for item in (graph, graph.graph, *graph.graph.node, *graph.graph.initializer, *values):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    symbols = {dim.dim_param for dim in graph.graph.input[0].type.tensor_type.shape.dim if dim.dim_param}
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_param = "batch"
    with path.open("wb") as file:
        file.write(graph.SerializeToString())


class _Prediction(torch.nn.Module):
    """The model as a function from tensors to a tensor; diffusers' output class cannot be exported."""

    def __init__(self, model: Any, family: Family, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.family, self.names = model, family, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.family.prediction(self.model, **dict(zip(self.names, inputs, strict=True)))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's chatter from stdout (which may carry JSON) and from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
