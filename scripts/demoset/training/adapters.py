"""Train an adapter on the narrow base.

    python scripts/python.py scripts/demoset adapters OUT --family standard
    python scripts/python.py scripts/demoset adapters OUT --family Plus

The training is the pack's own (`ipadapter/training/`). Latents, text and image features are
computed once and kept in OUT; the widths that the base leaves at zero stay zero in K' and V'.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tools.pack import pack_module
from torch import Tensor, nn

from ..host import tokenizer
from ..models import encoder, narrow, packed
from ..models.adapters import FILES
from ..models.text import TextFeatures
from ..world import scenes
from . import data, finetune
from .base import alphas_cumprod

ROOT = Path(__file__).resolve().parents[3]
# Blocks with attn2 in the order of an adapter's layers: input, output, middle.
BLOCKS = ("input_blocks.1.1", "output_blocks.0.1", "output_blocks.1.1", "middle_block.1")
STUDY_RATE = 1e-3
RESAMPLER = {"resampler_dim": 128, "resampler_depth": 2}
# The first steps decide what a picture shows: below this SNR every error counts alike, above less.
MIN_SNR = 0.1
# Colour, shape, background's colour, and the end, in "a red circle on a blue background".
WORDS = [2, 3, 6, 7]


class WithImage(nn.Module):
    """A narrow cross-attention that adds the attention over image tokens, before `to_out`."""

    def __init__(self, attention: narrow.Attention) -> None:
        super().__init__()
        self.attention = attention
        self.image: Any = None  # keys and values (B, tokens, channels) of the current batch
        self.observer: Any = None  # told the queries and what they draw from the text

    def drawn(self, query: Tensor, context: Tensor) -> Tensor:
        """What queries (B, heads, n, dim) draw from text (B or 1, tokens, 768)."""
        return _attend(query, self.attention.to_k(context), self.attention.to_v(context))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        inner = self.attention
        query = _split(inner.to_q(x)) * narrow.WIDE_HEAD**-0.5
        out = self.drawn(query, context)
        if self.observer is not None:
            self.observer(self, query, out)
        if self.image is not None:
            out = out + _attend(query, self.image.key, self.image.value)
        return inner.to_out(_merged(out))


def _merged(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).flatten(2)


def _split(tensor: Tensor) -> Tensor:
    return tensor.unflatten(-1, (narrow.HEADS, -1)).transpose(1, 2).contiguous()


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    logits = query @ _split(key).to(query.dtype).transpose(-1, -2)
    return logits.softmax(-1, dtype=query.dtype) @ _split(value).to(query.dtype)


class FrozenNarrow:
    """The narrow UNet as the pack's Trainer calls it."""

    def __init__(self, path: Path, device: torch.device) -> None:
        state, widths = narrow.load(path)
        self.unet = narrow.NarrowUNet(widths)
        self.unet.load_state_dict(state)
        self.unet.requires_grad_(False)
        narrow.placed(self.unet, device)
        self.attentions: list[WithImage] = []
        for block in BLOCKS:
            transformer: Any = self.unet.get_submodule(f"{block}.transformer_blocks.0")
            transformer.attn2 = WithImage(transformer.attn2)
            self.attentions.append(transformer.attn2)

    def text_weights(self) -> list[tuple[Tensor, Tensor]]:
        """to_k and to_v of every cross-attention, (channels, 768) each."""
        inner = [attention.attention for attention in self.attentions]
        return [(attention.to_k.weight, attention.to_v.weight) for attention in inner]

    def __call__(
        self, noisy: Tensor, timesteps: Tensor, batch: Any, key_values: Sequence[Any]
    ) -> Tensor:
        given = key_values or [None] * len(self.attentions)
        for attention, key_value in zip(self.attentions, given, strict=True):
            attention.image, attention.observer = key_value, None
        return self._call(noisy, timesteps, batch)

    def observe(
        self, noisy: Tensor, timesteps: Tensor, batch: Any, empty: Tensor, learn: Any
    ) -> None:
        """Tell the pack's Study what every layer draws from the caption and the empty one."""
        lesson = pack_module("training.study").Lesson

        def told(attention: WithImage, query: Tensor, text: Tensor) -> None:
            nothing = attention.drawn(query, empty.to(query.device))
            # Scaled for the wide head already; the pack scales for the dimensions that it sees.
            query = query * query.shape[-1] ** 0.5
            parts = [_merged(part) for part in (query, text, nothing)]
            learn(self.attentions.index(attention), lesson(*parts, narrow.HEADS))

        for attention in self.attentions:
            attention.image, attention.observer = None, told
        self._call(noisy, timesteps, batch)

    def _call(self, noisy: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(noisy.device.type, torch.bfloat16):
            return self.unet(noisy, timesteps, batch.text)


@dataclass(frozen=True, eq=False)
class DemoSamples:
    """Scenes with their captions and features, as the pack's Trainer reads them."""

    domain: data.Domain
    features: Tensor
    no_features: Tensor
    make: Any  # the pack's Batch

    def __len__(self) -> int:
        return len(self.features)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self.domain.latents.shape[1:])

    @property
    def empty_text(self) -> Tensor:
        return self.domain.empty

    @property
    def tells(self) -> bool:
        return True

    def batch(self, samples: Tensor, drop_image: Tensor, drop_text: Tensor) -> Any:
        features = self.features[samples].float()
        flags = drop_image.view(-1, *[1] * (features.ndim - 1))
        features = torch.where(flags, self.no_features, features)
        text = self.domain.context(samples, ~drop_text)
        return self.make(self.domain.latents[samples], features, text)


@torch.no_grad()
def image_features(domain: data.Domain, count: int, weights: Path) -> dict[str, Tensor]:
    """Pooled (N, 256) and penultimate hidden (N, 65, 128) features in fp16, zero pixels' last."""
    model, photos = encoder.load(weights), scenes.load_photos()
    pooled, hidden = [], []

    def read(pixels: Tensor) -> None:
        out = model(pixel_values=pixels, output_hidden_states=True)
        pooled.append(out.image_embeds.half())
        hidden.append(out.hidden_states[-2].half())

    for start in range(0, count, 50):
        indices = torch.arange(start, min(start + 50, count))
        read(encoder.preprocess(domain.images(indices, photos)))
    read(torch.zeros(1, 3, encoder.IMAGE_SIZE, encoder.IMAGE_SIZE))
    return {"pooled": torch.cat(pooled), "hidden": torch.cat(hidden)}


def samples_for(family: str, options: argparse.Namespace) -> DemoSamples:
    """Latents, captions and features of the training series, kept in the output folder."""
    domain = finetune.domain(options)
    path = options.out / f"features-{options.seed}-{options.samples}.pt"
    if not path.is_file():
        weights = options.weights / "encoder.safetensors"
        torch.save(image_features(domain, options.samples, weights), path)
    kind = torch.load(path, weights_only=True)["pooled" if family == "standard" else "hidden"]
    nothing = torch.zeros(1, kind.shape[-1]) if family == "standard" else kind[-1:].float()
    return DemoSamples(domain, kind[:-1], nothing, pack_module("training.data").Batch)


def train(family: str, options: argparse.Namespace) -> dict[str, Tensor]:
    """Train an adapter; returns its narrow tensors in the standard layout."""
    core = pack_module("training.trainer")
    samples = samples_for(family, options)
    frozen = FrozenNarrow(options.weights / "unet.safetensors", torch.device(options.device))
    adapter = new_adapter(family, frozen, samples, options)
    trainer = core.Trainer(adapter, samples, frozen, schedule(), settings_of(options))
    notice = core.train(trainer, reporter(trainer, options.out / f"{family}.pt", options))
    if notice:
        print(notice, flush=True)
    return dict(trainer.state().result)


def new_adapter(
    family: str, frozen: FrozenNarrow, samples: DemoSamples, options: argparse.Namespace
) -> Any:
    """An adapter that an earlier run wrote, else a new one, aligned."""
    adapters, spec = pack_module("training.trainable"), pack_module("adapters.spec")
    plan = adapters.ProjectorPlan(
        spec.Family(family), samples.features.shape[-1], narrow.CONTEXT, **RESAMPLER
    )
    generator = torch.Generator().manual_seed(options.seed)
    adapter = adapters.TrainableAdapter.create(plan, frozen.text_weights(), generator)
    if options.start is None:
        align(adapter, samples, TextFeatures(tokenizer()), options.align)
        study(adapter, samples, frozen, options)
    else:
        adapter.load_state_dict(packed.load(options.start)[0])
    return adapter


def settings_of(options: argparse.Namespace) -> Any:
    """The pack's TrainSettings."""
    return pack_module("training.recipe").TrainSettings(
        steps=options.steps,
        batch_size=options.batch,
        learning_rate=options.rate,
        drop_image=0.05,
        drop_text=options.drop_text,
        average=0.99,
        min_snr=MIN_SNR,
        warm_start=options.study,
        seed=options.seed,
        device=torch.device(options.device),
    )


def reporter(trainer: Any, path: Path, options: argparse.Namespace) -> Callable[[int, float], bool]:
    """Prints the loss, keeps the result so far in `path`, and lets the rate fall."""
    began = time.time()

    def report(step: int, _loss: float) -> bool:
        done = step / options.steps
        if step % 25 == 0:
            mean = sum(trainer.losses[-25:]) / 25
            print(f"{step} {time.time() - began:.0f}s loss {mean:.4f}", flush=True)
        if step % 50 == 0 or step == 1:
            torch.save(dict(trainer.state().result), path)
        rate = options.rate * min(1, (step + 1) / 50) * (0.02 + 0.98 * math.cos(done * math.pi / 2))
        trainer.optimizer.param_groups[0]["lr"] = rate
        return True

    return report


def align(adapter: Any, samples: DemoSamples, text: TextFeatures, steps: int) -> None:
    """Let the projector first say in image tokens what a caption would say in words.

    K' and V' begin as the text's, so they can read that: four words of a plain caption, in turn.
    """
    photos = scenes.load_photos()
    drawn = [scenes.sample(samples.domain.seed, i, photos)[2] for i in range(len(samples))]
    said = {i: _plain_caption(scene) for i, scene in enumerate(drawn) if scene is not None}
    captions = sorted(set(said.values()))
    words = data.caption_features(captions, text)[:, WORDS].float()
    where = torch.tensor([captions.index(caption) for caption in said.values()])
    known = torch.tensor(list(said))
    optimiser = torch.optim.AdamW(adapter.image_proj.parameters(), lr=2e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        rows = torch.randint(len(known), (64,), generator=generator)
        tokens = adapter.image_proj(samples.features[known[rows]].float())
        target = words[where[rows]].repeat(1, tokens.shape[1] // len(WORDS), 1)
        loss = torch.nn.functional.mse_loss(tokens, target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        if step % 100 == 0:
            spread = float(words.var(0).mean())
            print(f"align {step} loss {float(loss):.4f} of {spread:.4f}", flush=True)


def study(adapter: Any, samples: DemoSamples, frozen: FrozenNarrow, options: Any) -> None:
    """The pack's warm start, on the scenes whose caption tells one object by its shape."""
    core, trainer = pack_module("training.study"), pack_module("training.trainer")
    single = samples.domain.single
    chosen = pack_module("training.data").Part(samples, single[single < len(samples)])
    settings = replace(settings_of(options), learning_rate=STUDY_RATE / core.RATE)
    stage = core.Study(adapter, chosen, frozen.observe, schedule(), settings)
    began = time.time()

    def report(step: int, _error: float) -> bool:
        if step % 50 == 0:
            mean = sum(stage.errors[-50:]) / 50
            print(f"study {step} {time.time() - began:.0f}s missed {mean:.3f}", flush=True)
        return True

    if options.study:
        trainer.train(stage, report)


def schedule() -> Any:
    """The pack's NoiseSchedule of the base."""
    alphas = alphas_cumprod()
    return pack_module("training.recipe").NoiseSchedule(((1 - alphas) / alphas).sqrt())


def _plain_caption(scene: scenes.Scene) -> str:
    item = scene.items[0]
    return f"a {item.colour} {item.shape} on a {scene.background} background"


def main() -> None:
    """Command line."""
    parser = finetune.parser(__doc__, steps=100, batch=16, rate=5e-5)
    add = parser.add_argument
    add("--family", choices=tuple(FILES), default="standard")
    add("--start", type=Path, help="a file that an earlier run wrote")
    add("--align", type=int, default=1500, help="steps before, of the projector alone")
    add("--study", type=int, default=1000, help="steps before, of every layer beside the caption")
    add("--drop-text", type=float, default=0.6)
    options = finetune.parse(parser)
    tensors = train(options.family, options)
    path = options.out / f"{FILES[options.family]}.safetensors"
    packed.save(tensors, path, {"family": options.family, "steps": str(options.steps)})
    print(f"{path} {path.stat().st_size / 1e6:.2f} MB")
