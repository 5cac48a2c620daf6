"""Graphs of a student's signature, written without a model: sample times timestep, after unary operators."""

import numpy as np
import onnx
from onnx import TensorProto, helper


def write_graph(path, *operators, side=4):
    """Write a graph with unary `operators`, one after the other, as its body; samples are (batch, 1, side, side)."""
    names = ["sample", *(f"hidden_{index}" for index in range(len(operators)))]
    nodes = [helper.make_node(kind, [names[i]], [names[i + 1]]) for i, kind in enumerate(operators)]
    nodes += [
        helper.make_node("Cast", ["timestep"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["real", "shape"], ["column"]),
        helper.make_node("Mul", [names[-1], "column"], ["out_sample"]),
    ]
    image = ["batch", 1, side, side]
    graph = helper.make_graph(
        nodes,
        "student",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, image),
            helper.make_tensor_value_info("timestep", TensorProto.INT64, ["batch"]),
        ],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, image)],
        [onnx.numpy_helper.from_array(np.array([-1, 1, 1, 1]), "shape")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
