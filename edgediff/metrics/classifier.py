"""A small classifier trained on real images: do drawn ones show what was asked for (Shmelkov et al. 2018, GAN-test)?

It is trained where it is needed, in seconds, and kept: the same images give the same classifier. How well it does on
real images that it has not seen stands beside every figure. That is what a perfect model would reach; strongly guided
images can score higher, for they are more typical of their class than real ones are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from edgediff.artifacts import atomic_file, digest, sha256
from edgediff.data import user_cache
from edgediff.data.images import Source
from edgediff.data.order import evenly
from edgediff.metrics.checks import at_once, checked_images
from edgediff.output import Output

SIDE = 32  # images are resized to it where they are larger: a class is seen in little
WIDTHS = (16, 32, 64)
MOST_IMAGES, EPOCHS, BATCH, LEARNING_RATE, SEED = 20_000, 4, 64, 5e-3, 0
CHUNK = 500  # images classified at once


class Classifier:
    """Tells the class of images of one set; `sha256` is that of its weights."""

    def __init__(self, network: nn.Module, sha256: str) -> None:
        self.network, self.sha256 = network.eval(), sha256

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the classes (N,) int64 of images (N, C, H, W) in [-1, 1].

        Raises: BadInputError for another shape or range; StageFailedError for images that are not finite.
        """
        chunks = checked_images(images).split(CHUNK)
        return torch.cat([self.network(_small(chunk)).argmax(dim=1) for chunk in chunks])

    def accuracy(self, batches: Iterable[Tensor], labels: Tensor) -> float:
        """Return the share of images, in batches (n, C, H, W), whose class is that of the labels (N,), in [0, 1]."""
        return float((torch.cat([self(batch) for batch in batches]) == labels).double().mean())

    def accuracy_on(self, images: Source) -> float:
        """Return the share of all images of a set whose class it tells."""
        everywhere = torch.arange(len(images))
        labels = images.class_labels(images.shown(everywhere))
        return self.accuracy((images.batch(chunk) for chunk in everywhere.split(at_once(images.shape))), labels)


def classifier(images: Source, output: Output) -> Classifier:
    """Return the classifier of a training set, trained now or read from the user's cache.

    Raises: BadInputError when a class is not known.
    """
    indices = evenly(len(images), MOST_IMAGES)
    labels = images.class_labels(indices)
    settings = [SIDE, WIDTHS, MOST_IMAGES, EPOCHS, BATCH, LEARNING_RATE, SEED]
    path = user_cache.made(digest([images.sha256, labels.tolist(), settings]), "classifier.safetensors")
    network = _network(images.shape[0], int(labels.max()) + 1)
    if not _read(network, path):
        _train(network, images, indices, output)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            save_file(network.state_dict(), temporary)
    return Classifier(network, sha256(path))


def _network(channels: int, classes: int) -> nn.Module:
    """Return three strided convolutions and a linear layer over the mean of what they see."""
    layers: list[nn.Module] = []
    for before, after in zip((channels, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        last = nn.Linear(WIDTHS[-1], classes)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def _read(network: nn.Module, path: Path) -> bool:
    """Read weights that were kept; those that are not there or damaged are made again."""
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError):
        return False
    return True


def _train(network: nn.Module, images: Source, indices: Tensor, output: Output) -> None:
    """Train with Adam and a rate that rises and falls; images that are damaged are what stands in for them."""
    network.train()
    updates = EPOCHS * -(-len(indices) // BATCH)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=updates)
    with output.progress("train the classifier", updates) as progress:
        for chunk in _batches(indices):
            loss = cross_entropy(network(_small(images.batch(chunk))), images.class_labels(images.shown(chunk)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance()


def _batches(indices: Tensor) -> Iterator[Tensor]:
    """Yield the indices in another order every epoch."""
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(EPOCHS):
        yield from indices[torch.randperm(len(indices), generator=generator)].split(BATCH)


def _small(images: Tensor) -> Tensor:
    size = [min(side, SIDE) for side in images.shape[2:]]
    if size == list(images.shape[2:]):
        return images
    return interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
