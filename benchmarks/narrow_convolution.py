"""Convolutions of few channels on a CPU, which oneDNN pads to 16 of them.

`adopt(model)` gives the layers of a model that it suits the kernels of narrow_convolution.cpp, compiled for this
processor on first use. Weights, their names and, up to rounding, results stay what they are, so a model may change
hands between this and stock layers.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

COMPILER = "g++"
SOURCE = Path(__file__).with_suffix(".cpp")
LARGEST_WIDTH = 32  # two vectors of 16
FEWEST_PIXELS = 100  # of fewer, and of more channels, oneDNN makes as much
MOST_PAIRS = 200  # of channels, in and out


class NarrowConv2d(nn.Conv2d):
    """nn.Conv2d of 3x3 or 1x1, padded to keep the size, stride 1; a stock one for what the kernels do not take."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, C_out, H, W) of (B, C_in, H, W)."""
        _, _, height, width = input.shape
        plain = input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        if plain and height * width >= FEWEST_PIXELS and width <= LARGEST_WIDTH:
            return convolution(input, self.weight, self.bias)
        return super().forward(input)


def adopt(model: nn.Module) -> None:
    """Change the class of every layer that the kernels suit; of none where there is no compiler."""
    if shutil.which(COMPILER) is None:
        return
    for module in model.modules():
        if type(module) is nn.Conv2d and _suits(module):
            module.__class__ = NarrowConv2d


def _suits(layer: nn.Conv2d) -> bool:
    shape = (layer.kernel_size, layer.padding, layer.stride)
    same = shape in (((3, 3), (1, 1), (1, 1)), ((1, 1), (0, 0), (1, 1))) and layer.padding_mode == "zeros"
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.bias is not None
    return same and plain and layer.in_channels * layer.out_channels <= MOST_PAIRS


@torch.library.custom_op("edgediff_benchmarks::convolution", mutates_args=())
def convolution(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve (B, C_in, H, W) with (C_out, C_in, side, side) to (B, C_out, H, W)."""
    input, weight = input.contiguous(), weight.contiguous()
    batch, inputs, height, width = input.shape
    output = input.new_empty(batch, len(weight), height, width)
    pointers = map(_pointer, (input, weight, bias, output))
    _library().convolve(*pointers, batch, inputs, len(weight), height, width, weight.shape[-1])
    return output


@torch.library.custom_op("edgediff_benchmarks::convolution_weight_gradient", mutates_args=())
def weight_gradient(input: Tensor, gradient: Tensor, side: int) -> Tensor:
    """Return the gradient of a weight (C_out, C_in, side, side), from that of the output."""
    input, gradient = input.contiguous(), gradient.contiguous()
    batch, inputs, height, width = input.shape
    outputs = gradient.shape[1]
    found = input.new_empty(outputs, inputs, side, side)
    pointers = map(_pointer, (input, gradient, found))
    _library().weight_gradient(*pointers, batch, inputs, outputs, height, width, side)
    return found


@convolution.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return input.new_empty(len(input), len(weight), *input.shape[2:])


@weight_gradient.register_fake
def _(input: Tensor, gradient: Tensor, side: int) -> Tensor:
    return input.new_empty(gradient.shape[1], input.shape[1], side, side)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    input, weight = ctx.saved_tensors
    turned = weight.flip(2, 3).transpose(0, 1)
    of_input = convolution(gradient, turned, None) if ctx.needs_input_grad[0] else None
    return of_input, weight_gradient(input, gradient, weight.shape[-1]), gradient.sum((0, 2, 3))


convolution.register_autograd(_gradients, setup_context=_keep)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@cache
def _library() -> ctypes.CDLL:
    """Compile the kernels for this processor."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "narrow_convolution.so"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-shared", "-fPIC"]
        subprocess.run([COMPILER, *flags, str(SOURCE), "-o", str(made)], check=True)
        return ctypes.CDLL(str(made))
