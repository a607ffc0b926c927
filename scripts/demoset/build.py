"""Write the demo models into a ComfyUI `models` folder, as the stock loaders take them.

    python scripts/python.py scripts/demoset build OUT

OUT/checkpoints/demoset.safetensors   UNet, VAE and text encoder (CheckpointLoaderSimple: SD1.5)
OUT/clip_vision/demoset/              config.json, preprocessor_config.json, model.safetensors
OUT/ipadapter/demoset-*.safetensors   adapters of the standard and the Plus family
OUT/controlnet/demoset-edges.safetensors, OUT/loras/demoset-night.safetensors
"""

import argparse
import hashlib
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from .models import adapters, control, encoder, lora, narrow, packed, text, vae
from .models.packed import WEIGHTS

CHECKPOINT = Path("checkpoints/demoset.safetensors")
ENCODER = Path("clip_vision/demoset")


def checkpoint_state(unet: Path | None = None, autoencoder: Path | None = None) -> dict:
    """The checkpoint: UNet and VAE widened, in fp16, and the seeded text encoder."""
    state, widths = narrow.load(unet or WEIGHTS / "unet.safetensors")
    wide = narrow.widen(state, widths)
    parts = {f"model.diffusion_model.{key}": value.half() for key, value in wide.items()}
    codec = vae.widen(packed.load(autoencoder or WEIGHTS / "vae.safetensors")[0])
    parts |= {f"first_stage_model.{key}": value.half() for key, value in codec.items()}
    return parts | text.state_dict()


def write_checkpoint(weights: Path, models: Path) -> Path:
    """Write the checkpoint; the file appears only when complete."""
    path = models / CHECKPOINT
    path.parent.mkdir(parents=True, exist_ok=True)
    state = checkpoint_state(weights / "unet.safetensors", weights / "vae.safetensors")
    partial_file = path.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in state.items()}, partial_file)
    os.replace(partial_file, path)
    return path


def write_encoder(weights: Path, models: Path) -> Path:
    """Write the image encoder's folder."""
    encoder.write_folder(weights / "encoder.safetensors", models / ENCODER)
    return models / ENCODER


def _write_adapter(family: str, weights: Path, models: Path) -> Path:
    return adapters.write(family, models, weights)


# What is written from which stored weights: (folder of the weights, models folder) -> what appears.
WRITERS: dict[str, Callable[[Path, Path], Path]] = {
    "unet.safetensors": write_checkpoint,
    "encoder.safetensors": write_encoder,
    control.STORED: control.write,
    lora.STORED: lora.write,
}
for _family, _name in adapters.FILES.items():
    WRITERS[f"{_name}.safetensors"] = partial(_write_adapter, _family)


def build(out: Path, weights: Path = WEIGHTS) -> list[Path]:
    """Write below `out` every model whose weights are stored; returns what was written."""
    stored = [name for name in WRITERS if (weights / name).is_file()]
    return [WRITERS[name](weights, out) for name in stored]


def ensure(out: Path) -> bool:
    """`build`, unless what lies below `out` is of these weights and this code already; whether it
    was written."""
    here = Path(__file__)
    models = sorted((here.parent / "models").glob("*.py"))
    sources = [here, *models, *sorted(WEIGHTS.glob("*.safetensors"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    stamp = out / "demoset.stamp"
    if stamp.is_file() and stamp.read_text("utf-8") == digest:
        return False
    stamp.unlink(missing_ok=True)
    with torch.inference_mode():
        build(out)
    stamp.write_text(digest, "utf-8")
    return True


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="a models folder")
    parser.add_argument(
        "--weights", type=Path, default=WEIGHTS, help="folder of the narrow weights"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with torch.inference_mode():
        build(options.out, options.weights)
    for path in sorted(options.out.rglob("*")):
        if path.is_file():
            logging.info("%s  %.1f MB", path.relative_to(options.out), path.stat().st_size / 1e6)
