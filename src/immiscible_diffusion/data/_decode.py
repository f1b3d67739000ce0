"""From the encoded bytes of one image to its square of RGB pixels."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_BYTES", "PILLOW_LIMIT", "Decoder", "Pixels", "Reader", "Resize", "UnreadableError", "decode"]

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Reader = Callable[[int], bytes]
"""Returns the encoded bytes of one row; picklable, so that worker processes can hold it."""
Resize = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
MAX_BYTES = 2**28
"""A larger file is refused unread: no encoded training image has 256 MiB, but a zip bomb has."""
PILLOW_LIMIT = 89_478_485
"""Pillow's own bound on the pixels of an image; it warns beyond it and refuses beyond its double."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What may be opened. Pillow would also hand PostScript to Ghostscript and look for drivers of rarer formats."""


class UnreadableError(ValueError):
    """An image that cannot be used, and why."""


@dataclass(frozen=True)
class Decoder:
    """Everything that takes a row's number to its pixels; picklable."""

    read: Reader
    size: int
    crop: int
    resize: Resize
    max_pixels: int

    def __call__(self, row: int) -> Pixels:
        """Return the pixels of one row, (3, size, size).

        Raises:
            UnreadableError: whatever is wrong with the image.
        """
        try:
            return decode(self.read(row), self.size, self.crop, self.resize, self.max_pixels).transpose(2, 0, 1)
        except UnreadableError:
            raise
        except Exception as error:  # a damaged file takes Pillow, zlib or Arrow down in any way
            text = str(error) or type(error).__name__
            raise UnreadableError(text.splitlines()[0][:300]) from error


def decode(
    content: bytes, size: int, crop: int = 0, resize: Resize = "lanczos", max_pixels: int = PILLOW_LIMIT
) -> Pixels:
    """Return one encoded image as RGB, (size, size, 3), uint8.

    The orientation of its EXIF data is honoured; of an animation the first frame is taken; what is transparent is
    laid on white; 16-bit grey is divided by 257; CMYK is converted as Pillow does it, without a colour profile.

    Args:
        content: the bytes of a file.
        size: height and width of the result in pixels.
        crop: side of the central square in pixels that is resized; 0 takes the largest.
        resize: the filter.
        max_pixels: a larger image is refused before it is decoded.

    Raises:
        UnreadableError: no image of a known format, a larger one than allowed, or a smaller one than ``crop``.
        OSError: a damaged image; Pillow raises other errors as well.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not content:
        raise UnreadableError("it is empty (0 bytes)")
    method = Image.Resampling[resize.upper()]
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                raise UnreadableError(
                    f"it has {opened.width} x {opened.height} pixels, more than max_pixels = {max_pixels}"
                )
            _rescale_transparency(opened, content)
            ImageOps.exif_transpose(opened, in_place=True)
            picture = _rgb(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableError(f"it has more pixels than max_pixels = {max_pixels}: {error}") from error
    except UnidentifiedImageError as error:
        raise UnreadableError(f"it is no image of a known format ({', '.join(_FORMATS)})") from error
    if crop:
        w, h = picture.size
        if min(w, h) < crop:
            raise UnreadableError(f"it is {w} x {h} pixels, smaller than crop = {crop}")
        left, top = (w - crop) // 2, (h - crop) // 2
        picture = picture.crop((left, top, left + crop, top + crop))
    return np.asarray(ImageOps.fit(picture, (size, size), method))


def _rescale_transparency(image: "Image.Image", content: bytes) -> None:
    """Bring the transparent colour of a PNG to the scale of its pixels as Pillow gives them, where it leaves that out.

    Of 16-bit colours Pillow keeps the upper byte, of which the transparent one is compared.
    """
    colour = image.info.get("transparency")
    depth = content[24] if image.format == "PNG" else 8
    if isinstance(colour, int) and depth in (2, 4) and image.mode == "L":
        image.info["transparency"] = colour * 255 // (2**depth - 1)
    elif isinstance(colour, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255; 32 bits have no defined range
        grey = np.asarray(image).astype(np.int64)
        if not 0 <= int(grey.min()) <= int(grey.max()) <= 65535:
            raise UnreadableError(f"its values {grey.min()} .. {grey.max()} do not fit 16-bit grey")
        white = grey == image.info.get("transparency", -1)
        return Image.fromarray(np.where(white, 255, (grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableError("its pixels are floating-point numbers, whose range is not defined")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        straight = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", straight.size, "white"), straight).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")
