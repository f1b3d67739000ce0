"""What is not bad, only unusual, and what becomes of it."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from immiscible_diffusion.data import _decode
from pictures import content


def decoded(image: Image.Image, kind: str = "PNG", size: int = 4, **options: Any) -> Any:
    return _decode.decode(content(image, kind, **options), size, resize="nearest")


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]] * 4, np.uint16)
    grey = decoded(Image.fromarray(values))
    assert grey[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]
    assert decoded(Image.fromarray(values), "TIFF")[0].tolist() == grey[0].tolist()
    clipped = np.asarray(Image.open(io.BytesIO(content(Image.fromarray(values)))).convert("L"))
    assert clipped[0].tolist() != grey[0, :, 0].tolist()  # what Pillow alone would do


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, [0, 51, 204, 255]
    shown = decoded(Image.fromarray(rgba))[0]
    assert shown[:, 0].tolist() == [255, 244, 211, 200]
    assert shown[:, 1].tolist() == [255, 204, 51, 0]
    grey = Image.fromarray(np.dstack([np.full((4, 4), 10, np.uint8), rgba[..., 3]]))
    assert decoded(grey)[0, :, 2].tolist() == [255, 206, 59, 10]
    palette = Image.fromarray(np.tile(np.arange(4, dtype=np.uint8), (4, 1)), "P")
    palette.putpalette([9, 9, 9, 50, 60, 70, 1, 2, 3, 4, 5, 6])
    assert decoded(palette)[0].tolist() == [[9, 9, 9], [50, 60, 70], [1, 2, 3], [4, 5, 6]]
    assert decoded(palette, transparency=0)[0].tolist() == [[255] * 3, [50, 60, 70], [1, 2, 3], [4, 5, 6]]
    assert decoded(Image.fromarray(np.full((4, 4, 3), 7, np.uint8)), transparency=(7, 7, 7)).min() == 255


def png(depth: int, pixels: list[list[int]], transparent: list[int] | None) -> bytes:
    """Return a PNG of one row, four pixels of one or three channels; a transparent colour is in its tRNS."""
    bits = "".join(f"{value:0{depth}b}" for pixel in pixels for value in pixel)
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    head = struct.pack(">IIBBBBB", len(pixels), 1, depth, 2 if len(pixels[0]) == 3 else 0, 0, 0, 0)
    colour = [] if transparent is None else [(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))]
    chunks = [(b"IHDR", head), *colour, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    written = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_colour_of_any_depth_is_white(depth: int, channels: int) -> None:
    if channels == 3 and depth < 8:
        pytest.skip("PNG has no such colours")
    most = 2**depth - 1
    levels = {1: [0, 1, 0, 1], 16: [0, 0x1234, 0xAAAA, 0xFFFF]}.get(depth, [most // 3 * i for i in range(4)])
    pixels = [[level] * channels for level in levels]

    def shown(transparent: list[int] | None) -> list[list[int]]:
        return [_decode.decode(png(depth, [pixel] * 4, transparent), 1)[0, 0].tolist() for pixel in pixels]

    plain = [[round(level * 255 / most)] * 3 for level in levels]
    assert shown(None) == plain
    assert shown(pixels[1]) == [
        [255] * 3 if pixel == pixels[1] else grey for pixel, grey in zip(pixels, plain, strict=True)
    ]


def test_other_modes_become_rgb() -> None:
    grey = Image.fromarray(np.full((4, 4), 77, np.uint8))
    assert (decoded(grey) == 77).all()
    assert (decoded(grey.point(lambda v: 255 * (v > 9)).convert("1")) == 255).all()
    cmyk = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert np.abs(decoded(cmyk, "JPEG", quality=95).astype(int) - [0, 255, 255]).max() < 8


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_orientation_of_a_photograph_is_honoured(turn: int) -> None:
    """The corner that is to be shown at the top left, for each of the eight orientations of EXIF."""
    canvas = np.zeros((16, 16, 3), np.uint8)
    row, column = {1: (0, 0), 2: (0, 8), 3: (8, 8), 4: (8, 0), 5: (0, 0), 6: (8, 0), 7: (8, 8), 8: (0, 8)}[turn]
    canvas[row : row + 8, column : column + 8] = 240
    exif = Image.Exif()
    exif[0x0112] = turn
    shown = decoded(Image.fromarray(canvas), "JPEG", 2, quality=100, exif=exif)
    assert (shown[..., 0] > 200).tolist() == [[True, False], [False, False]]
    plain = decoded(Image.fromarray(canvas), "JPEG", 2, quality=100)
    assert ((plain[..., 0] > 200).tolist() == [[True, False], [False, False]]) == (turn in (1, 5))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (40, 200)]
    shown = decoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(shown.astype(int) - 40).max() < 4
