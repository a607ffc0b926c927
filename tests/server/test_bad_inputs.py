"""Bad input through HTTP: what the user reads, and that the server and the next graph go on."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.hosts.server import script
from support.models import badfiles
from support.references.interface import defaults

Node = dict[str, Any]
INSIGHTFACE = importlib.util.find_spec("insightface") is not None
DEMO_FILE = "random.safetensors"  # the demo's checkpoint and encoder
REFUSED = "the host"  # which refuses the whole graph before anything runs
CHECKED_EVERY = 12  # after so many bad graphs a good one is queued


def node(class_type: str, **inputs: Any) -> Node:
    """A node in API format; a tuple is a link."""
    linked = {
        key: list(value) if isinstance(value, tuple) else value for key, value in inputs.items()
    }
    return {"class_type": class_type, "inputs": linked}


def apply(class_type: str = "IPAdapterAdvanced", **inputs: Any) -> dict[str, Node]:
    """The Apply node with these inputs beside the usual ones."""
    usual = {
        **defaults("IPAdapterAdvanced"),
        "model": ("model", 0),
        "ipadapter": ("adapter", 0),
        "clip_vision": ("vision", 0),
        "image": ("image", 0),
    }
    return {"apply": node(class_type, **(usual | inputs))}


def adapter(name: str) -> dict[str, Node]:
    return {"adapter": node("IPAdapterModelLoader", ipadapter_file=name)}


def vision(name: str) -> dict[str, Node]:
    return {"vision": node("IPAdapterImageEncoderLoader", clip_vision_name=name)}


def picture(width: int, height: int, batch: int = 1) -> dict[str, Node]:
    sizes = {"width": width, "height": height, "batch_size": batch, "color": 0x4080C0}
    return {"image": node("EmptyImage", **sizes)}


def mask(width: int, height: int, value: float = 1.0) -> dict[str, Node]:
    return {"mask": node("SolidMask", value=value, width=width, height=height)} | apply(
        attn_mask=("mask", 0)
    )


def embeds(name: str) -> dict[str, Node]:
    """Apply what lies in an embeds file."""
    given = {"weight": 1.0, "weight_type": "linear", "start_at": 0.0, "end_at": 1.0}
    wires = {"model": ("model", 0), "ipadapter": ("adapter", 0), "pos_embed": ("embeds", 0)}
    return {
        "embeds": node("IPAdapterLoadEmbeds", embeds=name),
        "apply": node("IPAdapterEmbeds", embeds_scaling="V only", **wires, **given),
    }


def faces(missing: str = "error", **inputs: Any) -> dict[str, Node]:
    """A FaceID adapter and its Apply node."""
    given = apply("IPAdapterFaceID", weight_faceidv2=1.0, missing_face=missing, **inputs)
    del given["apply"]["inputs"]["clip_vision"]
    return adapter("face.safetensors") | given


def analysed(model_name: str, missing: str = "error") -> dict[str, Node]:
    """The same with face analysis."""
    loader = node("IPAdapterInsightFaceLoader", provider="CPU", model_name=model_name)
    return {"analysis": loader} | faces(missing, insightface=("analysis", 0))


def preset(class_type: str, name: str, **inputs: Any) -> dict[str, Node]:
    loader = node(class_type, model=("model", 0), preset=name, **inputs)
    return {"adapter": loader} | apply(ipadapter=("adapter", 1))


def save_embeds(prefix: str) -> dict[str, Node]:
    """Encode the picture and keep it under a name."""
    keep = node("IPAdapterSaveEmbeds", embeds=("encode", 0), filename_prefix=prefix)
    return {"encode": ENCODE, "keep": keep}


GOOD: dict[str, Node] = {
    "model": node("CheckpointLoaderSimple", ckpt_name=DEMO_FILE),
    **adapter("good.safetensors"),
    **vision("tiny"),
    "image": node("EmptyImage", width=96, height=64, batch_size=1, color=0x4080C0),
    "positive": node("CLIPTextEncode", clip=("model", 1), text="a cat"),
    "negative": node("CLIPTextEncode", clip=("model", 1), text=""),
    "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    **apply(),
    "sample": node(
        "KSampler",
        model=("apply", 0),
        positive=("positive", 0),
        negative=("negative", 0),
        latent_image=("latent", 0),
        seed=1,
        steps=1,
        cfg=4.0,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    ),
    "decode": node("VAEDecode", samples=("sample", 0), vae=("model", 2)),
    "save": node("SaveImage", images=("decode", 0), filename_prefix="good"),
}


@dataclass(frozen=True)
class Row:
    """What is wrong in the good graph, the node that says so, and what it says, in this order.

    Without a node: the graph runs all the same.
    """

    name: str
    change: dict[str, Node]
    node: str = ""
    said: tuple[str, ...] = ()


def files(kind: str, node_type: str, make: Any, told: dict[str, tuple[str, ...]]) -> list[Row]:
    """Rows for files: each message names the file."""
    return [
        Row(f"{kind} {name}", make(name), node_type, (name, *said)) for name, said in told.items()
    ]


AGAIN = "ownload it again"
HAS = "an IP-Adapter has tensors named 'image_proj...' and 'ip_adapter...'"
ADAPTER_FILES = {
    "cut.safetensors": ("truncated", "its header promises", AGAIN),
    "cut_header.safetensors": ("truncated", "within its header", AGAIN),
    "cut.bin": ("truncated or damaged torch file", AGAIN),
    "empty.safetensors": ("is empty (0 bytes)", AGAIN),
    "zeros.safetensors": ("filled with zeros", AGAIN),
    "page.safetensors": ("a web page, not a model", AGAIN),
    "lfs.safetensors": ("a Git LFS pointer", AGAIN),
    "archive.bin": ("truncated or damaged torch file", AGAIN),
    "code.bin": ("code", "was not loaded", "Use a .safetensors version"),
    "old_code.bin": ("code", "was not loaded", "Use a .safetensors version"),
    "lora.safetensors": ("is a LoRA", HAS, "models/loras", "Choose another"),
    "controlnet.safetensors": ("is a ControlNet", HAS, "models/controlnet", "Choose another"),
    "checkpoint.safetensors": ("is a full checkpoint", HAS, "models/checkpoints"),
    "encoder.safetensors": ("is a CLIP vision encoder", HAS, "models/clip_vision"),
    "flux.safetensors": ("no 'ip_adapter...' tensors", AGAIN),
    "csgo.safetensors": ("is a CSGO model", "which this pack cannot use", "choose another file"),
    "unknown.safetensors": ("is not an IP-Adapter", HAS, "something.weight", "Choose another"),
    "missing_key.safetensors": ("'3.to_v_ip.weight' is missing", "Download the file again"),
    "no_layers.safetensors": ("no 'ip_adapter...' tensors", AGAIN),
    "wrong_shape.safetensors": ("to_k_ip (320, 768) and to_v_ip (320, 5)", "two equal", AGAIN),
    "no_rows.safetensors": ("would give 0 tokens", "Download it again"),
    "shapes.safetensors": ("damaged safetensors header", AGAIN),
    "negative.safetensors": ("damaged safetensors header", AGAIN),
    "../checkpoints/random.safetensors": ("not in the ipadapter folder", "pick another"),
    "/etc/hostname": ("not in the ipadapter folder", "pick another"),
}
# What only the values or the spare keys tell is found when the adapter is used.
DAMAGED_FILES = {
    "extra_key.safetensors": ("'extra.weight' is not part of it", AGAIN),
    "nan.safetensors": ("'proj.weight' has NaN or infinite values", AGAIN),
    "inf_layer.safetensors": ("'3.to_v_ip.weight' has NaN or infinite values", AGAIN),
    "SD1.5.safetensors": (
        "is made for SD1.5 (16 layers of width 320, 640, 1280",
        "the MODEL is custom UNet (4 layers, width 768) (4 layers of width 320",
        "Load an adapter made for",
    ),
    "SDXL.safetensors": (
        "is made for SDXL (70 layers of width 640, 1280 and cross-attention width 2048)",
        "the MODEL is custom UNet (4 layers, width 768)",
        "Load an adapter made for",
    ),
    "plus_vit-h.safetensors": (
        "needs ViT-H (1280), got an image encoder with penultimate_hidden_states of width 64",
        "Load CLIP Vision",
    ),
}
ENCODER_FILES = {
    "cut_encoder.safetensors": ("truncated", AGAIN),
    "page_encoder.safetensors": ("a web page, not a model", AGAIN),
    "lora_encoder.safetensors": ("is not an image encoder", "a LoRA", "Pick a CLIP Vision"),
    "few_layers.safetensors": ("is incomplete", "Pick a CLIP Vision"),
    "no_weights": ("holds none of model.safetensors", "Download"),
    "bert": ("is not an image encoder", "unknown kind", "Pick a CLIP Vision"),
    "../checkpoints/random.safetensors": ("is not in models/clip_vision", "Put the encoder"),
    "/etc/hostname": ("is not in models/clip_vision", "Put the encoder"),
}
EMBEDS_FILES = {
    "page.ipadpt": ("a web page", AGAIN),
    "code.ipadpt": ("code", "was not loaded"),
    "plain.ipadpt.safetensors": ("is not an embeds file", "IPAdapter Save Embeds"),
    "gone.ipadpt": ("is not an embeds file", "Save one with IPAdapter Save Embeds"),
    "../outside/outside_00001_.ipadpt.safetensors": ("leads out of its folder",),
    "/etc/hostname": ("leads out of its folder",),
    "link.ipadpt.safetensors": ("is a link out of its folder",),
    "nan.ipadpt": ("NaN or infinite",),
}
ADVANCED, FACE = "IPAdapterAdvanced", "IPAdapterFaceID"
STYLE = {
    "image_style": ("image", 0),
    "image_composition": ("image", 0),
    "weight_style": 1.0,
    "expand_style": False,
}
WEIGHTS = {
    "timing": "custom",
    "frames": 0,
    "start_frame": 0,
    "end_frame": 9999,
    "add_starting_frames": 0,
    "add_ending_frames": 0,
    "method": "full batch",
}
ENCODE = node(
    "IPAdapterEncoder",
    ipadapter=("adapter", 0),
    image=("image", 0),
    weight=1.0,
    clip_vision=("vision", 0),
)
PERSON = node("LoadImage", image="astronaut.png")
FRAMES = {
    "person": PERSON,
    "wall": node("EmptyImage", width=512, height=512, batch_size=1, color=0x808080),
    "image": node("ImageBatch", image1=("person", 0), image2=("wall", 0)),
}
FACES = [
    Row(
        "face models missing",
        analysed("antelopev2"),
        "IPAdapterInsightFaceLoader",
        ("model pack antelopev2 is missing", "Expected", "scrfd_10g_bnkps.onnx", "unpack it flat"),
    ),
    Row("a face", analysed("buffalo_l") | {"image": PERSON}),
    Row(
        "no face",
        analysed("buffalo_l"),
        FACE,
        ("image: no face found in the picture", "Use a photograph of one clear face"),
    ),
    Row(
        "a frame without a face",
        analysed("buffalo_l") | FRAMES,
        FACE,
        ("image: no face found in image 2 of 2", "Use a photograph"),
    ),
    Row("a frame without a face is skipped", analysed("buffalo_l", "skip") | FRAMES),
]
NOT_INSTALLED = Row(
    "no insightface",
    analysed("buffalo_l"),
    "IPAdapterInsightFaceLoader",
    ("insightface is not installed", "FaceID adapters need it", "-m pip install insightface"),
)
NAN = float("nan")  # JSON has none, but Python's reader and the host's take it
ROWS = [
    *files("adapter", "IPAdapterModelLoader", adapter, ADAPTER_FILES),
    *files("adapter", ADVANCED, adapter, DAMAGED_FILES),
    *files("encoder", "IPAdapterImageEncoderLoader", vision, ENCODER_FILES),
    Row(
        "an encoder that the host refuses",
        {"vision": node("CLIPVisionLoader", clip_name="lora_encoder.safetensors")},
        "CLIPVisionLoader",
        ("clip vision file is invalid",),
    ),
    Row(
        "no encoder",
        apply(clip_vision=None),
        ADVANCED,
        ("good.safetensors needs a CLIP Vision encoder", "none is connected", "Load CLIP Vision"),
    ),
    Row(
        "an encoder without projection",
        vision("headless"),
        ADVANCED,
        ("good.safetensors needs", "has no visual_projection.weight", "Download"),
    ),
    Row(
        "an encoder of another width",
        adapter("standard_vit-h.safetensors"),
        ADVANCED,
        (
            "standard_vit-h.safetensors needs ViT-H (1024)",
            "got an image encoder with image_embeds of width 48",
            "Load",
        ),
    ),
    Row(
        "a transformer as MODEL",
        {"model2": node("UNETLoader", unet_name="tiny_sd3.safetensors", weight_dtype="default")}
        | apply(model=("model2", 0)),
        ADVANCED,
        (
            "good.safetensors",
            "the MODEL is custom SD3 (1 blocks, width 64)",
            "Load an adapter made",
        ),
    ),
    Row(
        "a preset for no such base",
        preset("IPAdapterUnifiedLoader", "FULL FACE - SD1.5 only (portraits stronger)"),
        "IPAdapterUnifiedLoader",
        ("FULL FACE", "custom UNet (4 layers, width 768)", "Searched"),
    ),
    Row(
        "a preset that does not exist",
        preset("IPAdapterUnifiedLoader", "ULTRA"),
        "IPAdapterUnifiedLoader",
        ('no preset "ULTRA"', "Choose one of"),
    ),
    Row(
        "a FaceID preset",
        preset("IPAdapterUnifiedLoaderFaceID", "FACEID PLUS V2", lora_strength=0.6, provider="CPU"),
        "IPAdapterUnifiedLoaderFaceID",
        ("FACEID PLUS V2", "custom UNet", "Searched"),
    ),
    Row(
        "a FaceID preset of another base",
        preset("IPAdapterUnifiedLoaderCommunity", "Kolors"),
        "IPAdapterUnifiedLoaderCommunity",
        ("Kolors", "Searched"),
    ),
    Row(
        "FaceID without face analysis",
        faces(),
        FACE,
        (
            "face.safetensors is a FaceID adapter",
            "no face analysis",
            "connect IPAdapter InsightFace Loader",
        ),
    ),
    Row(
        "FaceID in a plain Apply node",
        adapter("face.safetensors"),
        ADVANCED,
        (
            "face.safetensors is a FaceID adapter",
            "no face analysis",
            "IPAdapter Unified Loader FaceID",
        ),
    ),
    *(FACES if INSIGHTFACE else [NOT_INSTALLED]),
    # Pictures of any size are no error.
    Row("one pixel", picture(1, 1)),
    Row("8000 x 10", picture(8000, 10)),
    Row("10 x 8000", picture(10, 8000)),
    Row(
        "transparent",
        {
            "rgba": node("JoinImageWithAlpha", image=("image", 0), alpha=("alpha", 0)),
            "alpha": node("SolidMask", value=0.5, width=96, height=64),
        }
        | apply(image=("rgba", 0)),
    ),
    Row(
        "grey",
        {
            "grey": node("MaskToImage", mask=("alpha", 0)),
            "alpha": node("SolidMask", value=0.5, width=96, height=64),
        }
        | apply(image=("grey", 0)),
    ),
    Row("more pictures than latents", picture(32, 32, batch=3)),
    Row(
        "more pictures than latents, one each",
        picture(32, 32, batch=3) | apply("IPAdapterBatch", encode_batch_size=2),
    ),
    Row(
        "fewer pictures than latents",
        {"latent": node("EmptyLatentImage", width=64, height=64, batch_size=3)}
        | picture(32, 32, batch=2)
        | apply("IPAdapterBatch", encode_batch_size=0),
    ),
    Row("mask of another shape", mask(7, 3000)),
    Row("mask of one pixel", mask(1, 1)),
    Row("mask of zeros", mask(64, 64, 0.0)),
    Row(
        "a picture as mask",
        apply(attn_mask=("image", 0)),
        REFUSED,
        ("IPAdapterAdvanced", "attn_mask", "MASK"),
    ),
    Row("weight NaN", apply(weight=NAN), ADVANCED, ("eight", "nan", "expected a finite number")),
    Row("weight as a word", apply(weight="much"), REFUSED, ("IPAdapterAdvanced", "weight")),
    Row("weight far out", apply(weight=1e9), REFUSED, ("IPAdapterAdvanced", "weight")),
    Row(
        "start after end",
        apply(start_at=0.8, end_at=0.2),
        ADVANCED,
        ("start_at 0.8 lies after end_at 0.2", "Swap"),
    ),
    Row(
        "start NaN", apply(start_at=NAN), ADVANCED, ("start_at is nan", "expected a finite number")
    ),
    Row(
        "a weight type of no pack",
        apply(weight_type="strong"),
        ADVANCED,
        ("weight_type is 'strong'", "expected one of 'linear'"),
    ),
    Row("weight type of 2023", apply(weight_type="original")),
    *[
        Row(f"layers {text!r}", apply("IPAdapterMS", layer_weights=text, weight_faceidv2=1.0))
        for text in ("0:1, 0:2", "99:1, 0:1")
    ],
    Row(
        "combine by sum",
        apply(combine_embeds="sum"),
        ADVANCED,
        ("combine_embeds is 'sum'", "'concat'"),
    ),
    *[
        Row(f"{name} NaN", apply(kind, **{name: NAN}, **more), kind, (name, "nan", "finite number"))
        for kind, name, more in (
            ("IPAdapterStyleComposition", "weight_composition", STYLE),
            ("IPAdapterPreciseStyleTransfer", "style_boost", {}),
            ("IPAdapterPreciseComposition", "composition_boost", {}),
            ("IPAdapterMS", "weight_faceidv2", {"layer_weights": ""}),
            ("IPAdapterClipVisionEnhancer", "enhance_ratio", {"enhance_tiles": 2}),
        )
    ],
    *[
        Row(
            f"layer weights {text!r}",
            apply("IPAdapterMS", layer_weights=text, weight_faceidv2=1.0),
            "IPAdapterMS",
            ("layer_weights, entry", *said),
        )
        for text, said in {
            "3:": ('1: "3:" has no weight', "Write for example"),
            "x:1": ("expected a layer index from 0 to 3", "x"),
            "1": ('has no ":"', "Write index:weight"),
            "1:nan": ("expected a number such as 0.8",),
        }.items()
    ],
    Row(
        "frame weights",
        {"weights": node("IPAdapterWeights", weights="1, x", **WEIGHTS)}
        | apply("IPAdapterBatch", weight=("weights", 0), encode_batch_size=0),
        "IPAdapterWeights",
        ("weights", "x"),
    ),
    *files("embeds", "IPAdapterLoadEmbeds", embeds, EMBEDS_FILES),
    Row(
        "embeds of another model",
        embeds("foreign_00001_.ipadpt.safetensors"),
        "IPAdapterEmbeds",
        (
            "pos_embed does not belong to good.safetensors",
            "made for other.safetensors (standard for SDXL)",
            "needs image_embeds of an image encoder with image_embeds of width 48",
            "Encode the image again",
        ),
    ),
    *[
        Row(f"save embeds as {prefix}", save_embeds(prefix), "IPAdapterSaveEmbeds", said)
        for prefix, said in {
            "../escaped": ('"../escaped" leads out of its folder', "Give a name below"),
            "C:\\escaped": ("leads out of its folder",),
            "aux": ("a name that Windows reserves",),
        }.items()
    ],
]


@dataclass(frozen=True)
class Place:
    """The server with the bad files in its folders, and what a good graph gave at the beginning.

    mark: a file that code in the bad files would write. outside: a folder that no node may reach.
    explained: what the codes that end messages mean.
    """

    server: Any
    good: bytes
    mark: Path
    outside: Path
    explained: dict[str, str]

    def queue(self, change: dict[str, Node]) -> dict[str, Any]:
        """Queue the good graph with a change; its history entry."""
        return self.server.wait(self.server.queue(GOOD | change), 120)

    def picture(self) -> bytes:
        """The pixels that the good graph gives."""
        return pixels(self.server, self.queue({}))


def pixels(server: Any, entry: dict[str, Any]) -> bytes:
    assert script("tools.comfy_server").error_of(entry) is None
    (image,) = entry["outputs"]["save"]["images"]
    with Image.open(io.BytesIO(server.view(image))) as opened:
        return opened.tobytes()


@pytest.fixture(scope="module")
def place(server: Any) -> Iterator[Place]:
    models, given = server.base / "models", server.base / "input"
    mark, outside = server.base / "mark", server.base / "outside"
    outside.mkdir()
    badfiles.write_adapters(models / "ipadapter", mark)
    badfiles.write_encoders(models / "clip_vision")
    badfiles.write_tiny_encoder(models / "clip_vision" / "tiny")
    badfiles.write_tiny_encoder(models / "clip_vision" / "headless", projection=False)
    (models / "diffusion_models").mkdir(exist_ok=True)
    badfiles.write_tiny_transformer(models / "diffusion_models" / "tiny_sd3.safetensors")
    badfiles.write_embeds(given, outside)
    if INSIGHTFACE:
        badfiles.write_faces(models / "insightface", given / "astronaut.png")
    entry = server.wait(server.queue(GOOD))
    explained = server.get("/i18n")["zh"]["imagePromptProblems"]
    yield Place(server, pixels(server, entry), mark, outside, explained)
    assert not mark.exists(), "code in a file ran"
    assert not (outside / "embeds_mark").exists(), "code in a file ran"
    assert not list(server.base.glob("escaped*"))


def answer(place: Place, row: Row) -> tuple[str, tuple[str, ...]]:
    """What the user reads when the graph is queued, and what must be said in it."""
    server_error = script("tools.comfy_server").ServerError
    try:
        message = script("tools.comfy_server").error_of(place.queue(row.change)) or ""
    except server_error as refusal:
        if row.node == REFUSED:
            return str(refusal), row.said
        # Hosts check the values of lists themselves, before anything runs.
        return str(refusal), (row.node, "Value not in list")
    assert bool(message) == bool(row.node), message
    assert message.startswith(f"{row.node}: " if row.node else ""), message
    return message, row.said


@pytest.mark.parametrize(("number", "row"), list(enumerate(ROWS)), ids=[row.name for row in ROWS])
def test_bad_input(place: Place, number: int, row: Row) -> None:
    message, said = answer(place, row)
    assert not place.mark.exists()
    position = 0
    for part in said:
        assert part in message[position:], f"{part!r} is not said (or too early) in: {message}"
        position = message.index(part, position) + len(part)
    if row.node.startswith("IPAdapter") and message.startswith(f"{row.node}: "):
        assert message.rpartition(" [")[2].removesuffix("]") in place.explained, message
    if number % CHECKED_EVERY == CHECKED_EVERY - 1:
        assert place.picture() == place.good


def test_embeds_are_kept_inside(place: Place) -> None:
    """A whole path is no name; where it leads, nothing is written."""
    change = save_embeds(str(place.outside / "escaped"))
    message, (said,) = answer(
        place, Row("", change, "IPAdapterSaveEmbeds", ("leads out of its folder",))
    )
    assert said in message
    assert not list(place.outside.glob("escaped*"))


def test_the_server_goes_on(place: Place) -> None:
    """Nothing waits in the queue, and a good graph, computed anew from the files, is as before."""
    place.server.fetch("/free", json.dumps({"free_memory": True, "unload_models": True}).encode())
    entries = [place.queue({}), place.queue({})]  # memory may be freed before or after the first
    messages = [message for entry in entries for message in entry["status"]["messages"]]
    assert [] in [data["nodes"] for event, data in messages if event == "execution_cached"]
    assert all(pixels(place.server, entry) == place.good for entry in entries)
    assert place.server.get("/queue") == {"queue_running": [], "queue_pending": []}
