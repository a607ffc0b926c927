"""Who says how alike pictures and captions are, for `quality.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .demo_models import demoset

if TYPE_CHECKING:
    from PIL.Image import Image

_SCENES = 600  # that the demo judge learns captions from
_SERIES = 71  # of the scenes; no model was trained on it


class Judge(Protocol):
    """Cosines of samples with a picture and with a caption, one per sample."""

    def image_similarity(self, samples: Sequence[Image], picture: Image) -> list[float]: ...

    def text_similarity(self, samples: Sequence[Image], caption: str) -> list[float]: ...


class ClipJudge:
    """A CLIP from a Hugging Face folder on this machine; nothing is downloaded."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor, CLIPModel

        self.model = CLIPModel.from_pretrained(folder, local_files_only=True).train(False)
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)

    def image_similarity(self, samples: Sequence[Image], picture: Image) -> list[float]:
        return _cosines(self._images([*samples, picture]))

    @torch.no_grad()
    def text_similarity(self, samples: Sequence[Image], caption: str) -> list[float]:
        words = self.processor(text=[caption], return_tensors="pt", truncation=True)
        out = self.model.text_model(**words).pooler_output
        return _cosines(torch.cat((self._images(samples), self.model.text_projection(out))))

    @torch.no_grad()
    def _images(self, images: Sequence[Image]) -> Tensor:
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        out = self.model.vision_model(pixel_values=pixels).pooler_output
        return self.model.visual_projection(out)


class DemoJudge:
    """The demo set's own encoder; a ridge regression maps captions into its embeddings.

    Embeddings are taken from their mean, which all scenes share.
    """

    def __init__(self) -> None:
        tools = demoset()
        self.encoder_module = tools.models.encoder
        tools.host.use_host()
        self.encoder = tools.models.encoder.load(tools.build.WEIGHTS / "encoder.safetensors")
        self.text = tools.models.text.TextFeatures(tools.host.tokenizer())
        scenes = tools.world.scenes
        drawn = [scenes.sample(_SERIES, number) for number in range(_SCENES)]
        images = self._embed(torch.stack([torch.from_numpy(image) for image, _, _ in drawn]))
        self.centre = images.mean(0)
        captions = [caption for _, caption, _ in drawn]
        words = torch.cat([self._words(captions[i : i + 50]) for i in range(0, _SCENES, 50)])
        penalty = 3.0 * torch.eye(words.shape[1])
        self.map = torch.linalg.solve(words.T @ words + penalty, words.T @ (images - self.centre))

    @torch.no_grad()
    def _embed(self, images: Tensor) -> Tensor:
        pixels = self.encoder_module.preprocess(images)
        parts = [self.encoder(pixel_values=part).image_embeds for part in pixels.split(50)]
        return torch.cat(parts).float()

    def _words(self, captions: list[str]) -> Tensor:
        """Mean of a caption's features, and a constant: (captions, 769)."""
        features = self.text(captions).mean(1)
        return torch.cat((features, torch.ones(len(captions), 1)), 1)

    def _images(self, images: Sequence[Image]) -> Tensor:
        from torchvision.transforms.functional import pil_to_tensor

        size = self.encoder_module.IMAGE_SIZE
        pixels = [pil_to_tensor(image.resize((size, size))).float() / 255 for image in images]
        return self._embed(torch.stack(pixels)) - self.centre

    def image_similarity(self, samples: Sequence[Image], picture: Image) -> list[float]:
        return _cosines(self._images([*samples, picture]))

    def text_similarity(self, samples: Sequence[Image], caption: str) -> list[float]:
        return _cosines(torch.cat((self._images(samples), self._words([caption]) @ self.map)))


def _cosines(embeddings: Tensor) -> list[float]:
    """Of all but the last with the last."""
    return functional.cosine_similarity(embeddings[:-1], embeddings[-1:]).tolist()


def write_scenes(folder: Path, count: int) -> Path:
    """Scenes with full captions that no demo model was trained on."""
    scenes = demoset().world.scenes
    folder.mkdir(parents=True)
    for number in range(count):
        rng = scenes.scene_rng(_SERIES + 1, number)
        scene = scenes.random_scene(rng)
        image = torch.from_numpy(scenes.render(scene, rng))
        scenes.save_png(image, folder / f"{number:04}.png")
        caption = scenes.caption(scene, rng, full=True)
        (folder / f"{number:04}.txt").write_text(caption, "utf-8")
    return folder
