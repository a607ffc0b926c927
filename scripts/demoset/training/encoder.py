"""Train the image encoder on what the scenes are made of.

    python scripts/python.py scripts/demoset encoder OUT.safetensors

The pooled embedding must tell the colours (and, as CLIP's does, their names), shapes, textures,
sizes and places, the penultimate hidden states also the colour and the object cover of each patch.
Photographs take part with their colour layout.
"""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..models.encoder import CONFIG, GRID, build, preprocess, save
from ..world import scenes

FINE = 4  # cells a side of each patch at which its object cover is told
ITEM_OUTPUTS = (
    len(scenes.SHAPES) + 3 + len(scenes.TEXTURES) + 3
)  # shape, colour, texture, x y radius
GLOBAL_OUTPUTS = 2 * ITEM_OUTPUTS + 2 + 3 + 3 * 16  # items, flags, background, 4x4 colour layout


class Targets:
    """What a batch's heads must tell; photographs have no items."""

    def __init__(self, images: torch.Tensor, drawn: list[scenes.Scene | None]) -> None:
        count = len(drawn)
        self.layout = F.interpolate(images, size=(4, 4), mode="area").flatten(1)
        self.patches = F.interpolate(images, size=(GRID, GRID), mode="area").flatten(2)
        self.flags = torch.zeros(count, 2)  # is a scene, has a second object
        self.background = torch.stack([scenes.background_colour(image) for image in images])
        self.shape = torch.full((count, 2), -100)
        self.texture = torch.full((count, 2), -100)
        self.colour = torch.zeros(count, 2, 3)
        self.geometry = torch.zeros(count, 2, 3)
        self.cover = torch.zeros(count, FINE * FINE, GRID, GRID)
        self.names = torch.full((count, 2), -100)  # of the background's colour, the first object's
        for row, scene in enumerate(drawn):
            if scene is not None:
                self._fill(row, scene)

    def _fill(self, row: int, scene: scenes.Scene) -> None:
        names = list(scenes.COLOURS)
        self.names[row] = torch.tensor(
            [names.index(scene.background), names.index(scene.items[0].colour)]
        )
        self.flags[row] = torch.tensor([1.0, float(len(scene.items) == 2)])
        for slot, item in enumerate(scene.items):
            self.shape[row, slot] = scenes.SHAPES.index(item.shape)
            self.texture[row, slot] = scenes.TEXTURES.index(item.texture)
            self.colour[row, slot] = torch.tensor(scenes.COLOURS[item.colour])
            x, y = item.centre
            self.geometry[row, slot] = torch.tensor([x / 64 - 1, y / 64 - 1, item.radius / 50])
            cover = torch.from_numpy(scenes.coverage(item))[None, None]
            fine = F.interpolate(cover, size=(GRID * FINE, GRID * FINE), mode="area")
            self.cover[row] += F.pixel_unshuffle(fine, FINE)[0]


def global_loss(output: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Loss of a linear read-out (B, GLOBAL_OUTPUTS)."""
    items, flags, background, layout = output.split([2 * ITEM_OUTPUTS, 2, 3, 48], 1)
    shape, colour, texture, geometry = items.unflatten(1, (2, -1)).split(
        [len(scenes.SHAPES), 3, len(scenes.TEXTURES), 3], 2
    )
    there = (targets.shape >= 0)[..., None].float()
    loss = F.cross_entropy(shape.flatten(0, 1), targets.shape.flatten())
    loss = loss + 0.5 * F.cross_entropy(texture.flatten(0, 1), targets.texture.flatten())
    loss = loss + 8 * ((colour - targets.colour).square() * there).sum() / there.sum() / 3
    loss = loss + 4 * ((geometry - targets.geometry).square() * there).sum() / there.sum() / 3
    loss = loss + 0.2 * F.binary_cross_entropy_with_logits(flags, targets.flags)
    return (
        loss
        + 8 * F.mse_loss(background, targets.background)
        + 8 * F.mse_loss(layout, targets.layout)
    )


def patch_loss(output: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Loss of the per-patch read-out (B, patches, 3 + FINE²): colour, and object cover."""
    colour, cover = output[..., :3].transpose(1, 2), output[..., 3:].transpose(1, 2)
    fine = F.mse_loss(cover, targets.cover.flatten(2))
    return 8 * F.mse_loss(colour, targets.patches) + 8 * fine


class Student(nn.Module):
    """The encoder and the read-outs it is trained through."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build()
        width = CONFIG["hidden_size"]
        self.pooled_head = nn.Linear(CONFIG["projection_dim"], GLOBAL_OUTPUTS)
        self.names_head = nn.Linear(CONFIG["projection_dim"], 2 * len(scenes.COLOURS))
        self.hidden_head = nn.Linear(width, GLOBAL_OUTPUTS)
        self.patch_head = nn.Linear(width, 3 + FINE**2)

    def forward(self, pixels: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.encoder(pixel_values=pixels, output_hidden_states=True)
        hidden = out.hidden_states[-2].float()
        normed = F.layer_norm(hidden, hidden.shape[-1:])
        pooled = self.pooled_head(out.image_embeds.float())
        names = self.names_head(out.image_embeds.float()).unflatten(1, (2, -1))
        named = F.cross_entropy(names.flatten(0, 1), targets.names.flatten(), ignore_index=-100)
        loss = (
            named
            + global_loss(pooled, targets)
            + 0.5 * patch_loss(self.patch_head(normed[:, 1:]), targets)
        )
        return loss + 0.5 * global_loss(self.hidden_head(normed.mean(1)), targets), pooled


def training_batch(seed: int, start: int, count: int, photos: list) -> tuple[torch.Tensor, Targets]:
    """Scenes, a tenth blurred photographs, an eighth sharp ones; brightness varies."""
    drawn = scenes.batch(seed, start, count - count // 8, photos, 0.1)
    rng = scenes.scene_rng(seed + 1, start)
    sharp = [torch.from_numpy(scenes.photo_crop(photos, rng)) for _ in range(count // 8)]
    images = torch.cat([drawn.images, torch.stack(sharp)])
    gain = torch.from_numpy(rng.uniform(0.85, 1.1, (count, 1, 1, 1)).astype("float32"))
    images = (images * gain).clamp(0, 1)
    return images, Targets(images, drawn.scenes + [None] * len(sharp))


def accuracy(output: torch.Tensor, targets: Targets) -> dict[str, float]:
    """Read-out quality of the first object's shape, texture, colour and of the background."""
    items = output[:, : 2 * ITEM_OUTPUTS].unflatten(1, (2, -1))[:, 0]
    known = targets.shape[:, 0] >= 0
    eight, four = len(scenes.SHAPES), len(scenes.TEXTURES)
    shape = items[known, :eight].argmax(1) == targets.shape[known, 0]
    texture = items[known, eight + 3 : eight + 3 + four].argmax(1) == targets.texture[known, 0]
    colour = (items[known, eight : eight + 3] - targets.colour[known, 0]).abs()
    ground = output[:, 2 * ITEM_OUTPUTS + 2 : 2 * ITEM_OUTPUTS + 5] - targets.background
    return {
        "shape": float(shape.float().mean()),
        "texture": float(texture.float().mean()),
        "colour error": float(colour.mean()),
        "background error": float(ground.abs().mean()),
    }


def train(out: Path, steps: int, size: int, start: Path | None, seed: int) -> None:
    """Train for `steps` steps; prints read-out accuracy on a held-out batch."""
    torch.manual_seed(seed)
    student, photos, began = Student(), scenes.load_photos(), time.time()
    if start is not None:
        student.load_state_dict(torch.load(start, weights_only=True), strict=False)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.02)
    held_images, held = training_batch(seed + 100, 0, 256, photos)
    for step in range(steps):
        decay = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.param_groups[0]["lr"] = 1.5e-3 * min(1, (step + 1) / 100) * (0.01 + 0.99 * decay)
        images, targets = training_batch(seed, step * size, size, photos)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = student(preprocess(images), targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 99:
            with torch.no_grad():
                _, output = student(preprocess(held_images), held)
            figures = {k: round(v, 3) for k, v in accuracy(output, held).items()}
            seconds = time.time() - began
            print(f"{step + 1} {seconds:.0f}s loss {loss.item():.3f} {figures}", flush=True)
            keep(student, out)
    keep(student, out)


def keep(student: Student, out: Path) -> None:
    """Write the encoder, and beside it the whole student to continue from."""
    save(student.encoder, out)
    torch.save(student.state_dict(), out.with_suffix(".student.pt"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--start", type=Path, help="a .student.pt to continue from")
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.out, options.steps, options.batch, options.start, options.seed)
