"""From an encoded image to the pixels of a model's sample: as a viewer shows it, cropped, resized."""

import io

import numpy as np
import pytest
from PIL import Image

from edgediff.data.decoding import decode

GREY, COLOUR = (1, 10, 10), (3, 10, 10)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_it_is_cropped_around_its_centre():
    framed = np.full((10, 30, 3), (255, 0, 0), dtype=np.uint8)
    framed[:, 10:20] = (0, 255, 0)
    pixels = decode(encoded(Image.fromarray(framed)), COLOUR)
    assert pixels.shape == COLOUR and pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.broadcast_to(np.array([0, 255, 0])[:, None, None], COLOUR))


def test_it_is_resized_with_antialiasing():
    striped = np.zeros((40, 80), dtype=np.uint8)
    striped[:, ::2] = 255  # finer than the target: antialiasing gives grey, skipping pixels gives black or white
    pixels = decode(encoded(Image.fromarray(striped)), GREY)
    assert np.abs(pixels[..., 1:-1].astype(float) - 127.5).max() < 20  # Lanczos passes a little of what it stops


def test_it_is_turned_upright_by_the_cameras_note():
    top_white = np.zeros((20, 20), dtype=np.uint8)
    top_white[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter clockwise: the top goes to the right
    pixels = decode(encoded(Image.fromarray(top_white), "JPEG", exif=exif, quality=95), GREY)
    assert pixels[..., :4].max() < 25 and pixels[..., 6:].min() > 230


def test_colour_becomes_grey_by_luma_and_grey_becomes_colour():
    green = Image.new("RGB", (12, 12), (0, 255, 0))
    assert np.abs(decode(encoded(green), GREY) - 0.587 * 255).max() <= 1  # ITU-R 601, rounded to bytes
    assert np.array_equal(decode(encoded(Image.new("L", (12, 12), 70)), COLOUR), np.full(COLOUR, 70))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_white(mode):
    """Under full transparency files hold any colour, black as a rule, which no viewer shows."""
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (20, 20), (0,) * len(mode))
        image.paste((30,) * (len(mode) - 1) + (255,), (10, 0, 20, 20))
        options = {}
    else:
        image = Image.new("RGB", (20, 20), (0, 0, 0))
        image.paste((30, 30, 30), (10, 0, 20, 20))
        options = {"transparency": (0, 0, 0)}
        if mode == "P":
            image = image.quantize(2)
            options = {"transparency": image.getpixel((0, 0))}
    pixels = decode(encoded(image, **options), COLOUR)
    # Lanczos halving reaches six pixels: two columns on either side see one colour only.
    assert pixels[..., :2].min() == 255
    assert np.array_equal(pixels[..., 8:], np.full((3, 10, 2), 30))


def test_a_palette_is_looked_up():
    image = Image.new("RGB", (20, 20), (200, 10, 60)).quantize(4)
    assert decode(encoded(image), COLOUR)[:, 5, 5].tolist() == [200, 10, 60]


def test_a_fresh_format_is_as_good():
    pixels = decode(encoded(Image.new("RGB", (20, 20), (200, 10, 60)), "WEBP", lossless=True), COLOUR)
    assert pixels[:, 5, 5].tolist() == [200, 10, 60]


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_more_than_8_bits_are_refused_rather_than_clipped_to_white(kind):
    image = Image.fromarray(np.full((8, 8), 30_000, dtype=kind))
    with pytest.raises(ValueError, match="8 bits a channel"):
        decode(encoded(image, "TIFF"), GREY)
