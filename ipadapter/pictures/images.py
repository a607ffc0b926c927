"""Reference images as the image encoders want them: checked, cut square, resized, sharpened.

Images are (batch, height, width, channels) floats in 0..1, as the host passes them. Resizing goes
through Pillow on 8-bit pixels, because that is how the encoders' training images were prepared;
an image that already has the encoder's size is not resized again by the host.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from functools import reduce

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..attention.mask import check_mask
from ..errors import Problem

logger = logging.getLogger("ipadapter")

# A pixel of this colour is zero after CLIP's normalisation: the reference's "no image".
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
BLACK = (0.0, 0.0, 0.0)

# Resampling and decoding go a little above 1; more than this is something else.
OVERSHOOT = 2.0

# Beyond this many target sizes, only the kept part of an elongated image is computed: at 224 px the
# whole would take more than 200 MB. It may then differ by some levels where Pillow, which rounds
# between its two passes, takes the other pass first.
MAX_ELONGATION = 1024


class Fit(str, Enum):
    """How an image that is not square becomes square."""

    CROP = "crop"
    PAD = "pad"
    SQUASH = "squash"


class CropPosition(str, Enum):
    """Which part of an image that is not square is kept; a side on the other axis means centre."""

    TOP = "top"
    BOTTOM = "bottom"
    LEFT = "left"
    RIGHT = "right"
    CENTER = "center"
    PAD = "pad"


class Interpolation(str, Enum):
    """Resampling filters, named as Pillow names them."""

    LANCZOS = "LANCZOS"
    BICUBIC = "BICUBIC"
    HAMMING = "HAMMING"
    BILINEAR = "BILINEAR"
    BOX = "BOX"
    NEAREST = "NEAREST"

    @property
    def resampling(self) -> Image.Resampling:
        return Image.Resampling[self.value]


@dataclass(frozen=True)
class EncoderInput:
    """What an encoder takes: its side in pixels, how a picture becomes a square, and the colour
    that is zero to it and so says nothing."""

    size: int = 224
    fit: Fit = Fit.CROP
    mean: tuple[float, float, float] = CLIP_MEAN

    def square(self, image: Tensor, times: int = 1, name: str = "image") -> Tensor:
        """(images, height, width, channels) as the encoder sees it, or `times` as large."""
        return clip_image(image, self.size * times, self.fit, name)


@dataclass(frozen=True)
class CropLoss:
    """What cutting an image square throws away: the fraction of its area, and from which sides."""

    fraction: float
    sides: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.fraction:.0%} of the image is cut off ({' and '.join(self.sides)})"


def as_rgb(image: Tensor, name: str = "image") -> Tensor:
    """Check an image and make it (images, height, width, 3) float32 in 0..1: the one door for
    pictures. What is that already is returned as it is, not copied.

    One image without a batch axis, levels (0 to 255, of any dtype), and 1 (grey), 2 (grey, alpha),
    3 or 4 (RGBA) channels are accepted. Transparency is composited over white, the paper of cut-out
    pictures: dropping alpha, as the host does, shows the encoder whatever colour the invisible
    pixels have.
    """
    if not isinstance(image, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - from a wire
        raise Problem.BAD_PICTURE(f"{name}: expected an image tensor, got {type(image).__name__}.")
    shape = tuple(image.shape)
    if image.ndim == 3:
        image = image.unsqueeze(0)
    if image.ndim != 4 or not 1 <= image.shape[-1] <= 4 or image.numel() == 0:
        raise Problem.BAD_PICTURE(
            f"{name}: expected (images, height, width, 1 to 4 channels) with at least one image, "
            f"got {shape}. Connect an IMAGE output that holds a picture."
        )
    color, alpha = _split_alpha(image)
    color = _unit(color, name).expand(-1, -1, -1, 3)
    if alpha is None:
        return color.contiguous()
    alpha = _unit(alpha, name)
    return color * alpha + (1.0 - alpha)


def _unit(values: Tensor, name: str) -> Tensor:
    """float32 in 0..1. Levels are divided by 255; whatever else lies outside is clamped."""
    if values.dtype == torch.uint8:
        return values / 255.0
    values = values.to(torch.float32)
    low, high = (float(end) for end in values.aminmax())
    if low >= 0.0 and high <= 1.0:
        return values
    _check_finite(values, name)
    if high > OVERSHOOT:
        if _are_levels(values, high, name):
            logger.warning("%s holds levels, 0 to 255: they are divided by 255.", name)
            values = values / 255.0
        else:
            logger.warning("%s holds values up to %.3g: above 1 is as white as 1.", name, high)
    return values.clamp(0.0, 1.0)


def _are_levels(values: Tensor, high: float, name: str) -> bool:
    """Whether values from 0 to `high` are levels, as of an 8-bit file, and not brightness with
    highlights: all are whole numbers, or most are above 1. ValueError for more than 8 bits."""
    found = bool((values == values.round()).all()) or float((values > 1.0).float().mean()) > 0.5
    if found and high > 2 * 255:
        raise Problem.BAD_PICTURE(
            f"{name}: expected pixel values from 0 to 1, got up to {high:g}. Divide the picture by "
            "its largest possible value."
        )
    return found


def clip_image(image: Tensor, size: int = 224, fit: Fit = Fit.CROP, name: str = "image") -> Tensor:
    """Make (batch, size, size, 3) images ready for a CLIP encoder, in whole 8-bit levels.

    CROP is the Hugging Face rule: the short side becomes `size`, the long side is truncated (not
    rounded) to a whole pixel, and the centre is kept. PAD keeps everything on a field of CLIP's
    mean colour. SQUASH ignores the proportions.
    https://github.com/huggingface/transformers/blob/06053b84c14d72e9789fbf27844a75aa89b3ded7/src/transformers/models/clip/image_processing_clip.py#L53
    """
    image = as_rgb(image, name)
    height, width = image.shape[1:3]
    if height == width == size:
        return _from_levels(_levels(image), image.device)
    if fit is Fit.PAD:
        image = pad_square(image, CLIP_MEAN)
    if fit is not Fit.CROP:
        return resize(image, size, size, Interpolation.BICUBIC)
    return _resize_and_crop(image, size)


def prep_image(
    image: Tensor,
    interpolation: Interpolation = Interpolation.LANCZOS,
    crop_position: CropPosition = CropPosition.CENTER,
    sharpening: float = 0.0,
    size: int = 224,
) -> Tensor:
    """Cut or pad (black) to a square, resize to (batch, size, size, 3), then sharpen."""
    image = as_rgb(image)
    if crop_position is CropPosition.PAD:
        image = pad_square(image, BLACK)
    else:
        image = crop_square(image, crop_position)
    return sharpen(resize(image, size, size, interpolation), sharpening)


def crop_square(image: Tensor, position: CropPosition = CropPosition.CENTER) -> Tensor:
    """Keep the largest square of (batch, height, width, channels) at one end or in the middle."""
    height, width = image.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if position is CropPosition.TOP:
        top = 0
    elif position is CropPosition.BOTTOM:
        top = height - side
    elif position is CropPosition.LEFT:
        left = 0
    elif position is CropPosition.RIGHT:
        left = width - side
    return image[:, top : top + side, left : left + side]


def pad_square(image: Tensor, color: tuple[float, float, float]) -> Tensor:
    """Centre (batch, height, width, 3) on a square field of one colour."""
    batch, height, width, _ = image.shape
    side = max(height, width)
    field = image.new_tensor(color).expand(batch, side, side, 3).clone()
    top, left = (side - height) // 2, (side - width) // 2
    field[:, top : top + height, left : left + width] = image
    return field


def resize(
    image: Tensor,
    height: int,
    width: int,
    interpolation: Interpolation = Interpolation.BICUBIC,
) -> Tensor:
    """Resize (batch, height, width, 3) as Pillow does, with whole 8-bit levels as the result."""
    resized = [
        np.asarray(picture.resize((width, height), interpolation.resampling))
        for picture in _pictures(image)
    ]
    return _from_levels(np.stack(resized), image.device)


def crop_loss(height: int, width: int) -> CropLoss | None:
    """What the encoder's centre crop removes from an image of this size; None if nothing."""
    if height == width:
        return None
    sides = ("left", "right") if width > height else ("top", "bottom")
    return CropLoss(1.0 - min(height, width) / max(height, width), sides)


def crop_warning(
    image: Tensor, fit: Fit = Fit.CROP, threshold: float = 0.25, name: str = "image"
) -> str:
    """What to say when the centre crop of (batch, height, width, channels) loses
    a lot, else nothing."""
    height, width = image.shape[1:3]
    loss = crop_loss(height, width) if fit is Fit.CROP else None
    if loss is None or loss.fraction < threshold:
        return ""
    return (
        f"{name} is {width} x {height} and the encoder sees its middle square only: {loss}. To use "
        'all of it, take IPAdapter Tiled, or Prep Image For ClipVision with crop position "pad".'
    )


def warn_crop_loss(image: Tensor, fit: Fit = Fit.CROP, name: str = "image") -> None:
    """Log a warning when the centre crop of (batch, height, width, channels) loses a lot."""
    if warning := crop_warning(image, fit, name=name):
        logger.warning("%s", warning)


def blank_outside(
    image: Tensor, mask: Tensor | None, color: tuple[float, float, float] = CLIP_MEAN
) -> Tensor:
    """Fill (batch, height, width, channels) outside a (masks, height, width) mask with the
    encoder's mean colour.

    That colour is zero after the encoder's normalisation, so the blank part says nothing. Mask i
    belongs to image i, the last one to all later images; a mask of another size is resized.
    """
    if mask is None:
        return image
    image = as_rgb(image)
    height, width = image.shape[1:3]
    planes = check_mask(mask).unsqueeze(1)
    mode = "area" if planes[0, 0].numel() > height * width else "bilinear"  # thin shapes stay
    parts = F.interpolate(planes, size=(height, width), mode=mode).movedim(1, -1).to(image)
    index = torch.arange(len(image)).clamp(max=len(parts) - 1)
    return torch.lerp(image.new_tensor(color), image, parts[index])


def sharpen(image: Tensor, amount: float) -> Tensor:
    """Contrast-adaptive sharpening (AMD FidelityFX CAS) of (batch, height, width, channels).

    Every pixel gets a negative ring around it, as strong as its neighbourhood has room for before
    it would clip; `amount` 0..1 moves the strongest ring from 1/8 to 1/5. 0 leaves the image alone.
    """
    if not 0.0 <= amount <= 1.0:
        raise Problem.BAD_VALUE(f"sharpening: expected 0 to 1, got {amount}.")
    if amount == 0.0:
        return image
    height, width = image.shape[1:3]
    padded = F.pad(image.movedim(-1, 1), (1, 1, 1, 1), mode="replicate")
    window = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    cross, corners = [*window[1::2], window[4]], window[0::2]  # corners hold the middle too
    low, high = reduce(torch.minimum, cross), reduce(torch.maximum, cross)
    low = low + reduce(torch.minimum, corners, low)
    high = high + reduce(torch.maximum, corners, high)
    room = torch.minimum(low, 2.0 - high).clamp(min=0.0) / high.clamp(min=1e-6)
    ring = -room.sqrt() * (1 / 8 + amount * (1 / 5 - 1 / 8))
    sharpened = (sum(window[1::2]) * ring + window[4]) / (1.0 + 4.0 * ring)
    return sharpened.clamp(0.0, 1.0).movedim(1, -1)


def _check_finite(image: Tensor, name: str) -> None:
    if torch.isfinite(image.sum()):  # one pass, the usual case
        return
    broken = ~torch.isfinite(image).flatten(1).all(1)
    if broken.any():
        index = int(broken.nonzero()[0])
        raise Problem.BAD_PICTURE(
            f"{name}: expected finite pixel values, but image {index} of {len(image)} has NaN or "
            "infinite ones. The node that made it failed; for a VAE decode, try its fp32 mode."
        )


def _split_alpha(image: Tensor) -> tuple[Tensor, Tensor | None]:
    channels = image.shape[-1]
    if channels in (2, 4):
        return image[..., : channels - 1], image[..., channels - 1 :]
    return image, None


def _resize_and_crop(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[1:3]
    short, long = min(height, width), max(height, width)
    new_long = int(size * long / short)
    new_height, new_width = (new_long, size) if height > width else (size, new_long)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    if new_long <= MAX_ELONGATION * size:
        shape, box = (new_width, new_height), (left, top, left + size, top + size)
        cut = [p.resize(shape, Image.Resampling.BICUBIC).crop(box) for p in _pictures(image)]
    else:
        scale = long / new_long
        cut = [_window(p, size, max(top, left) * scale, size * scale) for p in _pictures(image)]
    return _from_levels(np.stack([np.asarray(picture) for picture in cut]), image.device)


def _window(picture: Image.Image, size: int, begin: float, length: float) -> Image.Image:
    """The kept part of an elongated picture, from `begin` on along its long side, resized."""
    if picture.width < picture.height:  # rows first, as Pillow does with the whole
        picture = picture.resize((size, picture.height), Image.Resampling.BICUBIC)
        box = (0, begin, size, begin + length)
    else:
        box = (begin, 0, begin + length, picture.height)
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _levels(image: Tensor) -> np.ndarray:
    """Float 0..1 to 8 bits, rounded to the nearest level."""
    return (image * 255.0).round_().clamp_(0, 255).to("cpu", torch.uint8).numpy()


def _from_levels(levels: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(levels).to(device, torch.float32) / 255.0


def _pictures(image: Tensor) -> list[Image.Image]:
    return [Image.fromarray(levels) for levels in _levels(image)]
