"""What training costs: counted operations of a step, and an epoch with and without what is kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .harness import Bench, Row

# In the words of `diffusers`; sides of the latent.
_BASES: dict[str, tuple[dict[str, Any], int]] = {
    "SD1.5 at 512": ({"cross_attention_dim": 768}, 64),
    "SDXL at 1024": (
        {
            "cross_attention_dim": 2048,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
        },
        128,
    ),
}


def training(_bench: Bench) -> Iterator[Row]:
    """Operations of one picture's pass and of the way back to the adapter, counted without weights.

    The text's keys and values stand for the image's: gradients go the same way.
    """
    from diffusers import UNet2DConditionModel

    for name, (config, side) in _BASES.items():
        with torch.inference_mode(False), torch.enable_grad(), torch.device("meta"):
            unet = UNet2DConditionModel(**config).requires_grad_(False)
            text = torch.empty(1, 77, config["cross_attention_dim"], requires_grad=True)
            with FlopCounterMode(display=False) as there:
                found = unet(torch.empty(1, 4, side, side), torch.empty(1), text).sample
            with FlopCounterMode(display=False) as back:
                found.sum().backward()
        forward, backward = there.get_total_flops() / 1e12, back.get_total_flops() / 1e12
        yield {
            "base": name,
            "pass TFLOP": forward,
            "back TFLOP": backward,
            "step TFLOP": forward + backward,
            "step, checkpointing": 2 * forward + backward,
            "warm start": forward,
        }


def epoch(bench: Bench) -> Iterator[Row]:
    """Seconds for each of some pictures once: through the demo set's encoders, then from disk; with
    the steps of training on the demo base, and without."""
    import comfy.sd
    from PIL import Image

    cached = Path.home() / ".cache" / "image-prompt-adapter" / "demoset"
    data, stored = bench.module("host.training.data"), bench.module("host.training.stored")
    store, session = bench.module("training.store"), bench.module("host.training.session")
    recipe, vision = bench.module("training.recipe"), bench.module("adapters.vision")
    checkpoint = str(cached / "checkpoints" / "demoset.safetensors")
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(checkpoint)[:3]
    encoder = bench.module("host.encoders").load_encoder(cached / "clip_vision" / "demoset")
    count, size = 32, 16
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for number in range(count):
            shade = Image.new("RGB", (640, 480), (number * 7 % 256, number * 31 % 256, 90))
            shade.save(Path(folder) / f"{number}.png")
            (Path(folder) / f"{number}.txt").write_text(f"shade number {number}")
        kept = store.Store(Path(folder) / "kept")
        found = bench.module("training.folder").read_folder(Path(folder))
        pictures = data.Pictures(count, found.image, found.content, found.captions)
        given = data.TrainingInputs(pictures, 8 * size, vae=vae, clip=clip, store=kept)
        asked = session.Recipe(settings=recipe.TrainSettings(steps=count // 4, batch_size=4))
        for what in ("encoded", "from disk"):
            begin = time.perf_counter()
            samples = stored.stored_set(model, encoder, vision.EmbedSource.POOLED, given, kept)
            nobody = torch.zeros(4, dtype=torch.bool)
            for start in range(0, count, 4):
                samples.batch(torch.arange(start, start + 4), nobody, nobody)
            delivered = time.perf_counter() - begin
            begin = time.perf_counter()
            session.train_adapter(model, encoder, given, asked)
            steps = time.perf_counter() - begin
            yield {
                "pictures": count,
                "samples": what,
                "s": delivered,
                "then an epoch's steps, s": steps,
            }
