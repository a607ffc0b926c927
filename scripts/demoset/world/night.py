"""The same scenes by night: dark blue ground, glowing objects."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import scenes

NIGHT = (0.05, 0.07, 0.26)  # the ground's colour


def night(image: Tensor, scene: scenes.Scene) -> Tensor:
    """The scene (3, 128, 128) by night: its objects lit up, a glow around them."""
    covers = [torch.from_numpy(scenes.coverage(item)) for item in scene.items]
    cover = torch.stack(covers).amax(0)
    lit = 0.2 + 0.8 * image
    glow = (lit * cover)[None]
    for _ in range(2):
        glow = F.avg_pool2d(glow, 17, 1, 8)
    ground = image.new_tensor(NIGHT)[:, None, None] + 0.5 * glow[0]
    return (ground * (1 - cover) + lit * cover).clamp(0, 1)
