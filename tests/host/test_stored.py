"""Training from what is kept on disk: the same adapter, nothing encoded twice, nothing old used."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.hosts.training import ONE_LEVEL, register, train_graph
from support.models.unets import Pair, build_model
from support.models.vision import tiny_clip_vision


class Words:
    """A CLIP of one matrix, which knows only how long a caption is; it counts its calls."""

    def __init__(self, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.cond_stage_model = torch.nn.Linear(1, ONE_LEVEL.context_dim)
        with torch.no_grad():
            self.cond_stage_model.weight.normal_(generator=g)
        self.calls = 0

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        self.calls += 1
        length = 7 if len(text) < 9 else 14
        told = torch.full((1, length, 1), 0.1 * len(text))
        return [[self.cond_stage_model(told).detach(), {}]]


def tiny_vae(seed: int) -> Any:
    """A real VAE with random weights, of TAESD's shape."""
    import comfy.sd
    import comfy.taesd.taesd

    g = torch.Generator().manual_seed(seed)
    shapes = comfy.taesd.taesd.TAESD(latent_channels=4).state_dict()
    state = {key: 0.1 * torch.randn(value.shape, generator=g) for key, value in shapes.items()}
    return comfy.sd.VAE(sd={**state, "vae_scale": torch.ones(()), "vae_shift": torch.zeros(())})


@dataclass
class Bench:
    """A folder of pictures, encoders that count what they are asked, and the node."""

    host: Any
    pair: Pair
    vae: Any = field(default_factory=lambda: tiny_vae(6))
    clip: Words = field(default_factory=Words)
    vision: Any = field(default_factory=tiny_clip_vision)

    @property
    def pictures(self) -> Path:
        return self.host.base / "input" / "kept"

    @property
    def entries(self) -> Path:
        return self.host.base / "output" / "ipadapter_encoded"

    def train(self, **changes: Any) -> Any:
        state = {k: v.clone() for k, v in self.pair.reference.state_dict().items()}
        given = {
            **train_graph(steps=3, warm_start=2, keep_encoded=True)["2"]["inputs"],
            "model": build_model(ONE_LEVEL, {k: v for k, v in state.items() if "_ip" not in k}),
            "clip_vision": self.vision,
            "vae": self.vae,
            "clip": self.clip,
            "image_folder": "kept",
            **changes,
        }
        for name in ("latent", "conditioning", "images"):
            del given[name]
        pipeline, _curve = self.host.call("IPAdapterTrain", **given)
        return pipeline.adapter.training

    def counted(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
        """Pictures that the VAE and the encoder are asked for from now on."""
        found = {"vae": 0, "vision": 0}
        vae, vision = self.vae.encode, self.vision.encode_image

        def vae_encode(images: Any) -> Any:
            found["vae"] += len(images)
            return vae(images)

        def vision_encode(images: Any, crop: bool = True) -> Any:
            found["vision"] += len(images)
            return vision(images, crop=crop)

        monkeypatch.setattr(self.vae, "encode", vae_encode)
        monkeypatch.setattr(self.vision, "encode_image", vision_encode)
        self.clip.calls = 0
        return found


@pytest.fixture
def bench(host: Any) -> Iterator[Bench]:
    found = Bench(host, register(host))
    shutil.rmtree(found.pictures, ignore_errors=True)
    shutil.rmtree(found.entries, ignore_errors=True)
    found.pictures.mkdir(parents=True)
    for number, caption in enumerate(("red", "a green one", "blue", "grey, and long")):
        colour = tuple(int(60 * number == part) * 200 for part in (0, 60, 120))
        Image.new("RGB", (40, 30 + number), colour).save(found.pictures / f"{number}.png")
        (found.pictures / f"{number}.txt").write_text(caption)
    yield found
    shutil.rmtree(found.entries, ignore_errors=True)


def same(one: Any, two: Any) -> bool:
    a, b = one.tensors(), two.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_from_disk_the_adapter_is_the_same_and_nothing_is_encoded_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = bench.train(keep_encoded=False)
    first = bench.train()
    assert same(first, in_memory)
    counts = bench.counted(monkeypatch)
    assert same(bench.train(), in_memory)
    assert counts == {"vae": 0, "vision": 0} and bench.clip.calls == 0


def test_a_lost_entry_alone_is_made_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench.train()
    files = sorted(bench.entries.rglob("*.safetensors"))
    # 4 pictures that could be read, their latents and features, 4 captions and the empty one.
    assert len(files) == 17
    for path in files[::2]:
        path.write_bytes(path.read_bytes()[:-3])
    counts = bench.counted(monkeypatch)
    again = bench.train()  # in other company, so that the encoders' sums are rounded otherwise
    for name, weight in whole.weights.items():
        torch.testing.assert_close(again.weights[name], weight, rtol=1e-3, atol=1e-4)
    assert 0 < counts["vae"] + counts["vision"] + bench.clip.calls <= 9


def change_picture(bench: Bench) -> None:
    Image.new("RGB", (40, 30), (9, 9, 9)).save(bench.pictures / "2.png")


def change_caption(bench: Bench) -> None:
    (bench.pictures / "2.txt").write_text("another text")


def change_vae(bench: Bench) -> None:
    bench.vae = tiny_vae(7)


def change_clip(bench: Bench) -> None:
    bench.clip = Words(1)


def change_encoder(bench: Bench) -> None:
    bench.vision = tiny_clip_vision()
    weights = bench.vision.model.state_dict()
    with torch.no_grad():
        next(value for key, value in weights.items() if "proj" in key).mul_(1.01)


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (change_picture, (1, 1, 0)),
        (change_caption, (0, 0, 1)),
        (change_vae, (4, 0, 0)),
        (change_clip, (0, 0, 5)),
        (change_encoder, (0, 4, 0)),
    ],
)
def test_what_has_changed_is_encoded_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: Any, made: tuple[int, ...]
) -> None:
    old = bench.train()
    change(bench)
    counts = bench.counted(monkeypatch)
    assert not same(bench.train(), old)
    assert (counts["vae"], counts["vision"], bench.clip.calls) == made


def test_what_a_graph_has_encoded_is_not_kept(bench: Bench) -> None:
    from support.hosts.training import latents

    latent = {"samples": latents()}
    state = bench.host.module("ipadapter.host.training.stored")
    sources = bench.host.module("ipadapter.host.training.data").TrainingInputs
    assert not state.can_be_stored(sources(None, latent=latent, vae=bench.vae, clip=bench.clip))
    assert state.can_be_stored(sources(None, vae=bench.vae, clip=bench.clip))
    assert not state.can_be_stored(sources(None, vae=bench.vae, clip=object()))
