"""Pictures as 8-bit arrays: decoding, centre squares, antialiased resizing, grey and RGB.

Everything here is integer arithmetic of Pillow on 8-bit values, so that two machines with the same
Pillow get the same pixels. Resizing is bilinear with a support that grows when shrinking, as
torchvision's `Resize` does to a picture by default: antialiased, and without overshoot.
"""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from gleak_core.errors import GleakError

__all__ = ["centre", "decode", "pixels", "resize", "resize_all", "to_channels"]

# Above this many pixels a JPEG is decoded at a fraction of its size, which needs less memory.
_MANY_PIXELS = 20_000_000


def decode(source: Path | BinaryIO, name: str) -> Image.Image:
    """Open a PNG or JPEG as upright 8-bit grey (`L`) or `RGB`, transparency laid over white."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures and refuses enormous ones; we resize the first.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(source, formats=("PNG", "JPEG"))
        with picture:
            if picture.width * picture.height > _MANY_PIXELS:
                picture.draft(None, (1024, 1024))
            picture.load()
            return _plain(ImageOps.exif_transpose(picture))
    except FileNotFoundError as error:
        raise GleakError(f"there is no picture {name}: check the path") from error
    except Image.DecompressionBombError as error:
        raise GleakError(
            f"{name} has more pixels than is safe to decode: shrink it to a few thousand a side"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise GleakError(f"{name} is not a PNG or JPEG picture: convert it to one") from error
    except PermissionError as error:
        raise GleakError(f"{name} may not be read: change its permissions") from error
    except IsADirectoryError as error:
        raise GleakError(f"{name} is a folder: give the path of one picture") from error
    # A broken PNG or JPEG surfaces as any of these, depending on where it is broken.
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise GleakError(
            f"{name} is a damaged picture ({error}): save it again or use another one"
        ) from error


def _plain(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits of grey
        return Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert(
            "RGB"
        )
    return picture.convert("L" if picture.mode in ("L", "1") else "RGB")


def centre(picture: Image.Image, side: int | None = None) -> Image.Image:
    """Cut out the central square, the largest one unless `side` is given."""
    side = side or min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def resize(picture: Image.Image, size: int) -> Image.Image:
    """Resize to `size` × `size`: bilinear, antialiased when shrinking."""
    return picture.resize((size, size), Image.Resampling.BILINEAR)


def pixels(picture: Image.Image) -> np.ndarray:
    """Return a grey or RGB picture as (H, W, C) bytes."""
    array = np.asarray(picture)
    return array[..., None] if array.ndim == 2 else array


def resize_all(images: np.ndarray, size: int) -> np.ndarray:
    """Resize many images."""  # (N, H, W, C) -> (N, size, size, C)
    if images.shape[1:3] == (size, size):
        return images
    grey = images.shape[-1] == 1
    pictures = (Image.fromarray(image[..., 0] if grey else image) for image in images)
    return np.stack([pixels(resize(picture, size)) for picture in pictures])


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Convert between grey and RGB; grey is the ITU-R 601 luma."""  # (N, H, W, C)
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return images.repeat(3, axis=-1)
    # In integers, and with weights that add up to 1000: an even grey keeps its value exactly.
    red, green, blue = np.moveaxis(images.astype(np.uint32), -1, 0)
    luma = (299 * red + 587 * green + 114 * blue + 500) // 1000
    return luma.astype(np.uint8)[..., None]
