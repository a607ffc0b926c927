"""Training on the demo base from a queued graph; what comes out, here and in `diffusers`.

Minutes long, so it runs when asked for: `python scripts/test.py tests/server -m slow -k trained`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.hosts.applied import pack_model
from support.hosts.server import script
from support.models.demoset import Demo, load_demo
from support.models.unets import Geometry, Pair, build_reference
from support.references.parity import Case, model_output, nested, reference_output

STEPS, PICTURES = 200, 24
# The demo base in the words of diffusers.
DEMO_BASE = Geometry(
    "demo base",
    dict(
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(320,),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,
    ),
    {},
    context_dim=768,
    widths=(320,) * 4,
)


def demo_base() -> Any:
    """A graph with the demo checkpoint."""
    graph, models = script("tools.graph"), script("tools.demo_models")
    size = {"width": models.SIZE, "height": models.SIZE}
    sampler = script("tools.kit").SAMPLER
    return graph.Base.of(graph.Graph("demo"), "", models.CHECKPOINT, "", sampler, **size)


def prompt(base: Any, server: Any) -> dict[str, Any]:
    """The graph as the server takes it."""
    return script("tools.workflow_formats").api_format(base.graph, server.info)


def training_graph(base: Any, encoder: str) -> None:
    """Adds the training and the saving of its result."""
    add = base.graph.add
    trained = add(
        "IPAdapterTrain",
        model=base.checkpoint["MODEL"],
        clip_vision=add("IPAdapterImageEncoderLoader", clip_vision_name=encoder)["CLIP_VISION"],
        vae=base.checkpoint["VAE"],
        clip=base.checkpoint["CLIP"],
        family="standard",
        num_tokens=0,
        steps=STEPS,
        batch_size=4,
        accumulation=1,
        learning_rate=1e-4,
        seed=0,
        drop_image=0.05,
        drop_text=0.05,
        drop_both=0.05,
        precision="fp32",
        image_folder="scenes",
        resolution=128,
        skip_unreadable=False,
        captions="",
    )
    saved = {"filename_prefix": "mine", "folder": "models/ipadapter", "precision": "fp32"}
    add("IPAdapterSave", ipadapter=trained["IPADAPTER"], with_training_state=True, **saved)
    add("SaveImage", images=trained["loss_curve"], filename_prefix="curve")


@pytest.fixture(scope="module")
def trained(demo_server: Any) -> Path:
    """The adapter's file; beside it the curve and the state of the training."""
    models = script("tools.demo_models")
    script("tools.judges").write_scenes(demo_server.base / "input" / "scenes", PICTURES)
    models.drawing("circle", "yellow", "purple").save(demo_server.base / "input" / "drawn.png")
    base = demo_base()
    training_graph(base, models.ENCODER)
    (curve,) = demo_server.pictures(prompt(base, demo_server), seconds=1800)
    (path,) = (demo_server.base / "models" / "ipadapter").glob("mine*.safetensors")
    path.with_suffix(".png").write_bytes(curve)
    return path


@pytest.mark.slow
def test_trained_adapter_lowers_the_loss(trained: Path, record_property: Any) -> None:
    """Measured on the same draws as the base alone, every tenth step."""
    shares = load_file(trained.with_suffix(".training"))["compared"][:, 1]
    first, last = float(shares[:5].mean()), float(shares[-5:].mean())
    found = f"loss as a share of the base's: {first:.3f} at first, {last:.3f} after {STEPS} steps"
    record_property("measured", str(found))
    assert last < first - 0.01 and last < 1


@pytest.mark.slow
def test_trained_adapter_is_loaded_by_another_graph(demo_server: Any, trained: Path) -> None:
    base, encoder = demo_base(), script("tools.demo_models").ENCODER
    picture = base.graph.picture("", "drawn.png")
    for title, weight in (("with", 1.0), ("without", 0.0)):
        base.save(base.prompted(trained.name, encoder, picture, weight=weight), title, steps=4)
    with_adapter, without = demo_server.pictures(prompt(base, demo_server))
    assert with_adapter != without


@pytest.mark.slow
@torch.no_grad()
def test_trained_adapter_gives_the_same_unet_output_in_diffusers(
    host: Any, trained: Path, record_property: Any
) -> None:
    demo = load_demo(host)
    pair = pair_of(demo)
    shutil.copy(trained, host.models("ipadapter") / trained.name)
    embeds = demo.vision.encode_image(demo.references[:1])["image_embeds"].float().clone()
    features = [embeds], [torch.zeros(1, embeds.shape[-1])]
    case = Case([nested(load_file(trained))], [0.8], *features)
    patched = pack_model(pair, case, lambda name: host.module(f"ipadapter.{name}"))
    ours = model_output(pair, patched)
    error = float((ours - reference_output(pair, case)).abs().max())
    change = float((ours - model_output(pair, pair.model)).abs().max())
    record_property("measured", f"trained adapter, diffusers: {error:.1e}; moves by {change:.1e}")
    assert error < 1e-5 < 1e-3 < change


def pair_of(demo: Demo) -> Pair:
    """The demo base in `diffusers` and, in fp32, in the host."""
    import comfy.sd
    import comfy.utils

    checkpoint = load_file(demo.host.models("checkpoints") / demo.tools.build.CHECKPOINT.name)
    prefix = "model.diffusion_model."
    unet = {
        key.removeprefix(prefix): value.float()
        for key, value in checkpoint.items()
        if key.startswith(prefix)
    }
    loaded = {"dtype": torch.float32}
    model = comfy.sd.load_diffusion_model_state_dict(dict(unet), model_options=loaded)
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    reference = build_reference(DEMO_BASE)
    known = reference.state_dict()
    reference.load_state_dict({theirs: unet[names[theirs]] for theirs in known})
    return Pair(DEMO_BASE, reference, model)
