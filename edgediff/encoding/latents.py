"""Latents of images, made once with a pipeline's VAE, so that training needs neither it nor the images.

What is kept of an image is the mean and the standard deviation of its latents' distribution, scaled as the denoising
model sees them, in half precision; a sample of it is drawn anew whenever one is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from edgediff.artifacts import read_object
from edgediff.data.images import Source
from edgediff.encoding import parts, store
from edgediff.encoding.store import Store
from edgediff.errors import BadInputError
from edgediff.output import Output

KIND = "latents"
STEM = "diffusion_pytorch_model"


class LatentCache:
    """The latents of a number of images, by index."""

    def __init__(self, rows: Store) -> None:
        """Take the rows that `open` or `encode` has found."""
        self.rows = rows
        self.name: str = rows.facts["name"]
        self.sha256 = rows.sha256
        channels, height, width = rows.facts["shape"]
        self.shape: tuple[int, int, int] = (channels, height, width)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a finished cache, without comparing what it was made from with anything.

        Raises: BadInputError for what is no cache of latents, or not finished.
        """
        return cls(Store.open(folder, KIND))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def mean(self, indices: Tensor) -> Tensor:
        """Return the means (B, C, h, w) float32 of the latents' distributions, which are also their modes.

        Raises: CorruptArtifactError that names a damaged shard, here and in all that follow.
        """
        (mean,) = self.rows.read(indices, "mean")
        return mean.float()

    def drawn(self, indices: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return one sample (B, C, h, w) float32 of each distribution, a function of its seed alone.

        Args: seeds: one a row, of a stream of their own: with those of the training's noise, the latent would hold
        the very noise that is added to it.
        """
        mean, std = (values.float() for values in self.rows.read(indices, "mean", "std"))
        for row, spread, seed in zip(mean, std, seeds, strict=True):
            row += spread * torch.randn(row.shape, generator=torch.Generator().manual_seed(seed))
        return mean

    def shown(self, indices: Tensor) -> Tensor:
        """Return which images (B,) the latents are of: where one was damaged, the one that stood in for it."""
        (image,) = self.rows.read(indices, "image")
        return image

    def time_ids(self, indices: Tensor) -> Tensor:
        """Return SDXL's micro-conditioning (B, 6) float32: original size, crop, target size (Podell et al. 2023, 2.2).

        Sizes are height and width; the crop is top and left, in the image resized until it covered the target.
        """
        (original,) = self.rows.read(indices, "size")
        target = torch.tensor(self.rows.facts["resolution"]).expand_as(original)
        scale = (target / original).amax(dim=1, keepdim=True)
        crop = ((original * scale - target) / 2).round()
        return torch.cat([original, crop, target], dim=1).float()


def encode(
    folder: Path,
    images: Source,
    teacher: Path,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    output: Output | None = None,
) -> LatentCache:
    """Make, continue or mend the cache in `folder`, of all images by the VAE of the pipeline folder `teacher`.

    The VAE is loaded when there is something left to do. Another batch size changes speed and the last bit only.

    Raises: BadInputError for a teacher without a VAE that can be used here, for images that it cannot encode, and,
    naming what differs, for a cache of another VAE, of other images or of another resolution; CorruptArtifactError for
    weights that do not fit their config; StageFailedError for latents that are not finite, or a full disk.
    """
    channels, height, width = images.shape
    shape = latent_shape(teacher, images.shape)

    @cache
    def vae() -> Any:
        from diffusers import AutoencoderKL

        return parts.load(AutoencoderKL, teacher / "vae", STEM).to(device)

    @torch.inference_mode()
    def rows(start: int, stop: int) -> dict[str, Tensor]:
        indices = torch.arange(start, stop)
        latents = vae().encode(images.batch(indices).to(device)).latent_dist
        shift, scale = _scaling(vae().config)
        shown = images.shown(indices)
        return {
            "mean": (latents.mean.cpu() - shift) * scale,
            "std": latents.std.cpu() * scale,
            "image": shown,
            "size": images.original_sizes(shown).int(),
        }

    filled = store.fill(
        folder,
        KIND,
        rows,
        count=len(images),
        inputs={
            "vae": parts.fingerprint(teacher / "vae", STEM),
            "images": images.sha256,
            "resolution": f"{channels}x{height}x{width}",
        },
        facts={"name": images.name, "shape": shape, "resolution": (height, width)},
        batch_size=batch_size,
        output=output or Output(),
    )
    return LatentCache(filled)


class Decoder:
    """Turns latents back into images, with a pipeline's VAE: the other way of `encode`."""

    def __init__(self, teacher: Path, *, device: torch.device | str = "cpu", batch_size: int = 8) -> None:
        """Load the VAE of the pipeline folder `teacher`, in float32: in half precision SD's overflows into black.

        Raises: as `encode` does for a VAE that cannot be used here.
        """
        from diffusers import AutoencoderKL

        _config(teacher)
        self.vae = parts.load(AutoencoderKL, teacher / "vae", STEM).to(device)
        self.device, self.batch_size = device, batch_size

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> Tensor:
        """Return the images (N, C, H, W) of latents (N, c, h, w) as the denoising model sees them; both on the CPU."""
        shift, scale = _scaling(self.vae.config)
        batches = (latents / scale + shift).split(self.batch_size)
        return torch.cat([self.vae.decode(batch.to(self.device)).sample.cpu() for batch in batches])


def latent_shape(teacher: Path, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape (C, h, w) of the latents of images of `shape` (C, H, W); loads no weights.

    Raises: BadInputError for a teacher without a VAE that can be used here, and for images that it cannot encode.
    """
    config, factor = _config(teacher)
    channels, height, width = shape
    wanted = config.get("in_channels", 3)
    if channels != wanted:
        raise BadInputError(f"the teacher's VAE encodes images of {wanted} channels, these have {channels}")
    if height % factor or width % factor:
        raise BadInputError(f"the teacher's VAE encodes images whose sides are multiples of {factor}: {height}x{width}")
    return config.get("latent_channels", 4), height // factor, width // factor


def image_shape(teacher: Path, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the images whose latents are of `shape` (C, h, w); loads no weights.

    Raises: BadInputError for a teacher without a VAE that can be used here, or whose latents have other channels.
    """
    config, factor = _config(teacher)
    channels, height, width = shape
    found = config.get("latent_channels", 4)
    if channels != found:
        raise BadInputError(f"the teacher's VAE makes latents of {found} channels, its model reads {channels}")
    return config.get("in_channels", 3), height * factor, width * factor


def _config(teacher: Path) -> tuple[dict[str, Any], int]:
    """Return the config of a teacher's VAE, and how many pixels a side of a latent's element stands for."""
    path = teacher / "vae" / "config.json"
    if not path.is_file():
        raise BadInputError(
            f"the teacher's folder has no VAE: `{path.parent}`",
            "fetch the whole pipeline, or give an existing latents cache",
        )
    config = read_object(path)
    name = config.get("_class_name")
    if name != "AutoencoderKL":
        raise BadInputError(f"the teacher's VAE is of a class that cannot be used: {name}", "known: AutoencoderKL")
    return config, 2 ** (len(config.get("block_out_channels", (64,))) - 1)


def _scaling(config: Any) -> tuple[Tensor, Tensor]:
    """Return shift and scale, (1 or C, 1, 1) each: the denoising model sees (latent - shift) * scale.

    Shifts are one number (SD 3) or, like divisors, one a channel (some finetunes of SDXL); SD and SDXL have none.
    """
    shift = torch.tensor(config.latents_mean or [config.shift_factor or 0.0])
    scale = config.scaling_factor / torch.tensor(config.latents_std or [1.0])
    return shift.view(-1, 1, 1), scale.view(-1, 1, 1)
