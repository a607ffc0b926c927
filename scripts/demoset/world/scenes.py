"""Synthetic scenes with captions: the world of the demo models, and the measures that judge them.

Everything follows from (seed, index); numpy and torch suffice (scikit-image holds the photographs).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .shapes import SHAPE_DISTANCES, SHAPES

SIZE = 128
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.12),
    "orange": (0.97, 0.55, 0.08),
    "yellow": (0.98, 0.90, 0.18),
    "green": (0.13, 0.62, 0.22),
    "cyan": (0.20, 0.82, 0.86),
    "blue": (0.12, 0.24, 0.82),
    "purple": (0.50, 0.16, 0.66),
    "pink": (0.98, 0.60, 0.76),
    "brown": (0.45, 0.26, 0.12),
    "white": (0.96, 0.96, 0.96),
    "grey": (0.52, 0.52, 0.52),
    "black": (0.06, 0.06, 0.06),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES: dict[str, tuple[float, float]] = {"small": (15, 20), "medium": (28, 36), "big": (42, 52)}
PLACES: dict[str, tuple[float, float]] = {
    "centre": (64, 64),
    "left": (36, 64),
    "right": (92, 64),
    "top": (64, 36),
    "bottom": (64, 92),
}
PHOTO_CAPTIONS = ("a photo", "a blurry photo", "a photo of many colours", "a soft photo")
PHOTO_FILES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
    "retina.jpg",
    "ihc.png",
    "color.png",
    "grass.png",
    "gravel.png",
    "brick.png",
)


@dataclass(frozen=True)
class Item:
    """One object: indices into the vocabularies, then its exact geometry in pixels."""

    shape: str
    colour: str
    texture: str
    size: str
    place: str
    centre: tuple[float, float]
    radius: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """A background colour, an optional second colour it fades to, and one or two objects."""

    background: str
    fade: str | None
    fade_down: bool
    items: tuple[Item, ...]


def scene_rng(seed: int, index: int) -> np.random.Generator:
    """The generator of scene `index` of the endless series `seed`."""
    return np.random.default_rng((seed, index))


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: mostly one object, a quarter with two, a sixth with a fading background."""
    names = list(COLOURS)
    background, fade, first, second = (names[i] for i in rng.permutation(len(names))[:4])
    faded = fade if rng.random() < 0.15 else None
    if rng.random() < 0.25:
        places = ("left", "right") if rng.random() < 0.5 else ("top", "bottom")
        items = tuple(
            _random_item(rng, colour, place, "medium", 22.0)
            for colour, place in zip((first, second), places, strict=True)
        )
    else:
        size = ("small", "medium", "big")[rng.choice(3, p=(0.2, 0.5, 0.3))]
        place = (
            tuple(PLACES)[rng.choice(5, p=(0.6, 0.1, 0.1, 0.1, 0.1))] if size != "big" else "centre"
        )
        items = (_random_item(rng, first, place, size),)
    return Scene(background, faded, bool(rng.random() < 0.5), items)


def _random_item(
    rng: np.random.Generator, colour: str, place: str, size: str, radius: float | None = None
) -> Item:
    texture = TEXTURES[rng.choice(4, p=(0.64, 0.12, 0.12, 0.12))] if size != "small" else "plain"
    x, y = PLACES[place]
    return Item(
        shape=SHAPES[rng.integers(len(SHAPES))],
        colour=colour,
        texture=texture,
        size=size,
        place=place,
        centre=(x + rng.uniform(-5, 5), y + rng.uniform(-5, 5)),
        radius=rng.uniform(*SIZES[size]) if radius is None else radius + rng.uniform(-2, 3),
        angle=rng.uniform(-0.15, 0.15),
    )


_GRID_Y, _GRID_X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


def coverage(item: Item) -> np.ndarray:
    """Anti-aliased coverage of the object, (SIZE, SIZE) in 0..1."""
    x, y = _local(item)
    distance = SHAPE_DISTANCES[item.shape](x, y) * item.radius
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def _local(item: Item) -> tuple[np.ndarray, np.ndarray]:
    x, y = (_GRID_X - item.centre[0]) / item.radius, (_GRID_Y - item.centre[1]) / item.radius
    cos, sin = np.cos(item.angle), np.sin(item.angle)
    return x * cos + y * sin, y * cos - x * sin


def _texture(item: Item) -> np.ndarray:
    """Share of the second colour at each pixel, (SIZE, SIZE) in 0..1; period about 16 pixels."""
    if item.texture == "plain":
        return np.zeros((SIZE, SIZE), np.float32)
    x, y = (axis * item.radius * 2 * np.pi / 16 for axis in _local(item))
    wave = {
        "striped": lambda: np.cos(y) * 3,
        "dotted": lambda: (np.cos(x) + np.cos(y)) * 3 - 2.4,
        "checked": lambda: np.sin(x * 0.8) * np.sin(y * 0.8) * 5,
    }[item.texture]()
    return np.clip(wave + 0.5, 0, 1).astype(np.float32)


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The image, (3, SIZE, SIZE) float32 in 0..1; colours vary by a few per cent."""
    image = _background(scene, rng)
    for item in scene.items:
        colour = _colour(item.colour, rng)
        other = _colour("black" if item.colour in ("white", "yellow") else "white", rng)
        share = _texture(item)[None]
        cover = coverage(item)[None]
        image = image * (1 - cover) + (colour * (1 - share) + other * share) * cover
    return np.clip(image, 0, 1)


def _colour(name: str, rng: np.random.Generator) -> np.ndarray:
    return (np.array(COLOURS[name]) + rng.uniform(-0.04, 0.04, 3)).astype(np.float32)[:, None, None]


def _background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    start = _colour(scene.background, rng)
    if scene.fade is None:
        return np.broadcast_to(start, (3, SIZE, SIZE)).astype(np.float32)
    axis = _GRID_Y if scene.fade_down else _GRID_X
    share = (axis / SIZE)[None]
    return start * (1 - share) + _colour(scene.fade, rng) * share


def _pick(rng: np.random.Generator, *options: str) -> str:
    return options[rng.integers(len(options))]


def describe_item(item: Item, rng: np.random.Generator, full: bool = False) -> str:
    """A phrase like "a big red striped circle", or with some of the words left out."""

    def keep(chance: float) -> bool:
        return full or rng.random() < chance

    words = [
        item.size if item.size != "medium" and keep(0.6) else "",
        item.colour if keep(0.85) else "",
        item.texture if item.texture != "plain" and keep(0.8) else "",
        item.shape if keep(0.9) else "shape",
    ]
    return "a " + " ".join(word for word in words if word)


def describe_background(scene: Scene) -> str:
    if scene.fade is None:
        return f"a {scene.background} background"
    return f"a {scene.background} and {scene.fade} background"


def caption(scene: Scene, rng: np.random.Generator, full: bool = False) -> str:
    """A caption in a small grammar; unless `full`, parts may be left open."""
    ground = describe_background(scene)
    if not full and rng.random() < 0.06:
        return ground
    said = [describe_item(item, rng, full) for item in scene.items]
    if len(said) == 2:
        relation = _pick(rng, "and", "next to") if scene.items[0].place == "left" else "above"
        if scene.items[0].place == "left" and rng.random() < 0.3:
            relation = "left of"
        text = f"{said[0]} {relation} {said[1]}"
    else:
        text = said[0]
        place = scene.items[0].place
        if place != "centre" and (full or rng.random() < 0.7):
            text += {"left": " on the left", "right": " on the right"}.get(
                place, f" at the {place}"
            )
    if full or rng.random() < 0.8:
        text += f" {_pick(rng, 'on', 'in front of') if rng.random() < 0.2 else 'on'} {ground}"
    return text


def load_photos(folder: Path | None = None) -> list[np.ndarray]:
    """Photographs as (3, H, W) float32: scikit-image's own, or every image file in `folder`."""
    from skimage import data, io

    paths = (
        [Path(data.__file__).parent / name for name in PHOTO_FILES]
        if folder is None
        else sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    )
    photos = []
    for path in paths:
        pixels = np.atleast_3d(io.imread(path))[..., :3].astype(np.float32) / 255
        pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
        photos.append(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return photos


def photo_crop(
    photos: list[np.ndarray], rng: np.random.Generator, detail: int | None = None
) -> np.ndarray:
    """A square crop, (3, SIZE, SIZE); `detail` keeps only a layout of that many cells a side."""
    photo = photos[rng.integers(len(photos))]
    height, width = photo.shape[1:]
    side = int(min(height, width) * rng.uniform(0.35, 1.0))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = torch.from_numpy(photo[:, top : top + side, left : left + side])[None]
    if rng.random() < 0.5:
        crop = crop.flip(3)
    order = rng.permutation(3) if rng.random() < 0.25 else np.arange(3)
    crop = crop[:, torch.from_numpy(order.copy())]
    if detail is not None:
        crop = F.interpolate(crop, size=(detail, detail), mode="area")
        crop = F.interpolate(crop, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    else:
        crop = F.interpolate(crop, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    return crop[0].clamp(0, 1).numpy()


@dataclass(frozen=True, eq=False)
class Batch:
    """Images (B, 3, SIZE, SIZE) in 0..1, their captions, and scenes (None: a photograph)."""

    images: torch.Tensor
    captions: list[str]
    scenes: list[Scene | None]


def sample(
    seed: int, index: int, photos: list[np.ndarray] | None = None, photo_share: float = 0.12
) -> tuple[np.ndarray, str, Scene | None]:
    """Image, caption and scene number `index` of series `seed`."""
    rng = scene_rng(seed, index)
    if photos and rng.random() < photo_share:
        detail = int(rng.integers(2, 9))
        return (
            photo_crop(photos, rng, detail),
            PHOTO_CAPTIONS[rng.integers(len(PHOTO_CAPTIONS))],
            None,
        )
    scene = random_scene(rng)
    return render(scene, rng), caption(scene, rng), scene


def batch(
    seed: int,
    start: int,
    count: int,
    photos: list[np.ndarray] | None = None,
    photo_share: float = 0.12,
) -> Batch:
    """Samples `start` to `start + count` of series `seed`."""
    drawn = [sample(seed, start + i, photos, photo_share) for i in range(count)]
    images = torch.from_numpy(np.stack([image for image, _, _ in drawn]))
    return Batch(images, [text for _, text, _ in drawn], [scene for _, _, scene in drawn])


# Measures -----------------------------------------------------------------------------------------


def background_colour(image: torch.Tensor) -> torch.Tensor:
    """Median colour of an 8-pixel frame of the image (3, H, W): (3,)."""
    top, bottom = image[:, :8].flatten(1), image[:, -8:].flatten(1)
    left, right = image[:, :, :8].flatten(1), image[:, :, -8:].flatten(1)
    return torch.cat([top, bottom, left, right], 1).median(1).values


def colour_error(measured: torch.Tensor, name: str) -> float:
    """Mean absolute difference to a named colour, channels counted from -1 to 1 (so 0 to 2)."""
    return float((measured - torch.tensor(COLOURS[name])).abs().mean() * 2)


def foreground(image: torch.Tensor) -> torch.Tensor:
    """Pixels that differ from the background, specks removed: (H, W) bool."""
    distance = (image - background_colour(image)[:, None, None]).abs().amax(0)
    mask = (distance > 0.18).float()[None, None]
    opened = -F.max_pool2d(-mask, 5, 1, 2)
    return (F.max_pool2d(opened, 5, 1, 2)[0, 0] > 0.5) & (mask[0, 0] > 0.5)


def object_colour(image: torch.Tensor) -> torch.Tensor | None:
    """Median colour of the foreground (3,); None where there is none."""
    mask = foreground(image)
    return image[:, mask].median(1).values if int(mask.sum()) > 60 else None


def shape_scores(image: torch.Tensor) -> dict[str, float]:
    """Overlap (IoU, 0..1) of the foreground with each shape, fitted over position, size."""
    mask = foreground(image).float()
    area = float(mask.sum())
    if area < 60:
        return dict.fromkeys(SHAPES, 0.0)
    rows, columns = mask.sum(1).cumsum(0) / area, mask.sum(0).cumsum(0) / area
    top, bottom = (int((rows < q).sum()) for q in (0.01, 0.99))
    left, right = (int((columns < q).sum()) for q in (0.01, 0.99))
    box = mask[top : bottom + 1, left : right + 1][None, None]
    box = F.interpolate(box, size=(32, 32), mode="area")[0, 0]
    aspect = max(box.new_tensor((bottom - top + 1) / (right - left + 1)), 0)
    scores = {}
    for name, template in _templates().items():
        fit = torch.minimum(box, template).sum() / torch.maximum(box, template).sum()
        shape_aspect = _template_aspect(name)
        scores[name] = float(fit * min(aspect / shape_aspect, shape_aspect / aspect))
    return scores


def detected_shape(image: torch.Tensor) -> str:
    """The best fitting shape name ("none" without a foreground)."""
    scores = shape_scores(image)
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > 0.35 else "none"


_TEMPLATE_CACHE: dict[str, tuple[torch.Tensor, float]] = {}


def _template_pairs() -> dict[str, tuple[torch.Tensor, float]]:
    if not _TEMPLATE_CACHE:
        for name in SHAPES:
            item = Item(name, "red", "plain", "big", "centre", (64.0, 64.0), 50.0, 0.0)
            mask = torch.from_numpy(coverage(item)) > 0.5
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float()
            resized = F.interpolate(box[None, None], size=(32, 32), mode="area")[0, 0]
            _TEMPLATE_CACHE[name] = (resized, box.shape[0] / box.shape[1])
    return _TEMPLATE_CACHE


def _templates() -> dict[str, torch.Tensor]:
    return {name: template for name, (template, _) in _template_pairs().items()}


def _template_aspect(name: str) -> float:
    return _template_pairs()[name][1]


def contact_sheet(images: torch.Tensor, columns: int, gap: int = 4) -> torch.Tensor:
    """Tile images (B, 3, H, W) into one (3, H', W') sheet on white."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.ones(3, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for i, image in enumerate(images):
        y, x = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        sheet[:, y : y + height, x : x + width] = image
    return sheet


def save_png(image: torch.Tensor, path: Path) -> None:
    """Write an image (3, H, W) in 0..1."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(path)
