"""The kernels that the extreme students are trained with, against stock layers."""

import copy
import shutil

import narrow_convolution
import pytest
import torch
from diffusers import UNet2DModel
from small_unet import SMALL_UNET
from torch import nn

pytestmark = pytest.mark.skipif(shutil.which(narrow_convolution.COMPILER) is None, reason="no compiler here")


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (14, 14), (11, 32), (32, 7)])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 4), (4, 1), (12, 4), (5, 7)])
def test_outputs_and_gradients_equal_a_stock_layer_s(side, height, width, inputs, outputs):
    torch.manual_seed(0)
    stock = nn.Conv2d(inputs, outputs, side, padding=side // 2).double()
    own = copy.deepcopy(stock).float()
    narrow_convolution.adopt(own)
    assert type(own) is narrow_convolution.NarrowConv2d
    images = torch.randn(3, inputs, height, width, dtype=torch.float64, requires_grad=True)
    same = images.detach().float().requires_grad_()
    slopes = torch.randn(3, outputs, height, width, dtype=torch.float64)

    expected, found = stock(images), own(same)
    expected.backward(slopes)
    found.backward(slopes.float())

    pairs = [(found, expected), (same.grad, images.grad), *zip(_gradients(own), _gradients(stock), strict=True)]
    for of_own, of_stock in pairs:
        torch.testing.assert_close(of_own.double(), of_stock, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 4, 28, 28), torch.float64), ((1, 4, 7, 7), torch.float32), ((1, 4, 8, 40), torch.float32)]
)
def test_what_the_kernels_do_not_take_goes_to_the_stock_layer(shape, dtype):
    stock = nn.Conv2d(4, 4, 3, padding=1).to(dtype)
    own = copy.deepcopy(stock)
    narrow_convolution.adopt(own)
    images = torch.randn(shape, dtype=dtype)
    assert torch.equal(own(images), stock(images))


def test_a_model_keeps_its_weights_and_layers_that_do_not_suit():
    stock = UNet2DModel(**SMALL_UNET).eval()
    own = copy.deepcopy(stock)
    narrow_convolution.adopt(own)
    kinds = {type(module) for module in own.modules() if isinstance(module, nn.Conv2d)}
    assert kinds == {nn.Conv2d, narrow_convolution.NarrowConv2d}  # those that halve the image stay
    assert own.state_dict().keys() == stock.state_dict().keys()
    images, timesteps = torch.randn(2, 1, 28, 28), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(own(images, timesteps).sample, stock(images, timesteps).sample)


def _gradients(layer):
    return [parameter.grad for parameter in layer.parameters()]
