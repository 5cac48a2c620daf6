"""One encoded image (JPEG, PNG, WebP, ...) to the pixels of a model's sample."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MODES = {1: "L", 3: "RGB"}


def decode(encoded: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return an image as a viewer shows it, in the shape (C, H, W) of a model's sample, C = 1 or 3.

    It is turned upright by the camera's note, laid on white where it is transparent, cropped around its centre and
    resized by Pillow's Lanczos, which antialiases; colour becomes grey by ITU-R 601 luma where the model wants grey.

    Raises: ValueError for more than 8 bits a channel; for a damaged image whatever Pillow's reader of its format does.
    """
    channels, height, width = shape
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would clip these to 255: a white image
            raise ValueError("more than 8 bits a channel")
        upright = ImageOps.exif_transpose(image)
        if "A" in upright.getbands() or "transparency" in upright.info:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        resized = ImageOps.fit(upright.convert(MODES[channels]), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized, dtype=np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
