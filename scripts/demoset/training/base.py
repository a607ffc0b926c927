"""Train the demo UNet: noise prediction on latents, SD1.5's schedule, text dropped one time in ten.

python scripts/python.py scripts/demoset base OUT --steps 10000    # CPU; resumes
... OUT --steps 12000 --device cuda --batch 128 --samples 60000          # on a GPU

`--early` puts the work where a picture's layout and shapes are decided, the noisiest steps;
`--single` draws that share of every batch from captions of one object that name its shape.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from ..models import narrow
from . import finetune
from .data import Domain

STEPS = 1000
MAX_SNR = 5.0
EARLY_POWER = 0.6  # timesteps as 1000 u^0.6: one in ten below 250 instead of one in four
EARLY_MIN_SNR = 0.3  # below it, errors of the picture (not of the noise) count alike


@dataclass(frozen=True)
class Focus:
    """What training dwells on: the noisiest timesteps, and a share of plainly told scenes."""

    early: bool = False
    single: float = 0.0


def alphas_cumprod() -> torch.Tensor:
    """SD1.5's schedule (1000,)."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, STEPS) ** 2, 0)


def early(shares: torch.Tensor) -> torch.Tensor:
    """Timesteps (n,) from random numbers of 0 to 1, the noisy ones more often."""
    return (STEPS * shares**EARLY_POWER).long()


def weights(timesteps: torch.Tensor, lowest: float) -> torch.Tensor:
    """What errors of the noise count (n,): min(SNR, 5) / SNR, SNRs below `lowest` as `lowest`."""
    alpha = alphas_cumprod().to(timesteps.device)[timesteps]
    ratio = alpha / (1 - alpha)
    return ratio.clamp(lowest, MAX_SNR) / ratio


def noise_loss(
    unet: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    latents: torch.Tensor,
    context: torch.Tensor,
    generator: torch.Generator,
    dwell: bool = False,
) -> torch.Tensor:
    """Squared error of the predicted noise; `dwell`: on the noisiest timesteps (see `weights`)."""
    device = latents.device
    shares = torch.rand(len(latents), generator=generator, device=device)
    timesteps = early(shares) if dwell else (STEPS * shares).long()
    noise = torch.randn(latents.shape, generator=generator, device=device)
    alpha = alphas_cumprod().to(device)[timesteps]
    signal, deviation = (a[:, None, None, None] for a in (alpha.sqrt(), (1 - alpha).sqrt()))
    noisy = (signal * latents + deviation * noise).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        predicted = unet(noisy, timesteps, context)
    error = F.mse_loss(predicted.float(), noise, reduction="none").mean((1, 2, 3))
    return (error * weights(timesteps, EARLY_MIN_SNR if dwell else 0)).mean()


class Trainer:
    """The network, its optimiser, the averaged weights, and what a resume needs."""

    def __init__(self, widths: narrow.Widths, device: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.device = device
        self.unet = narrow.placed(narrow.NarrowUNet(widths), device)
        self.optimiser = torch.optim.AdamW(
            self.unet.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.average = {k: v.detach().clone() for k, v in self.unet.state_dict().items()}
        self.generator = torch.Generator(device).manual_seed(seed)
        self.step = 0

    def update(self, domain: Domain, size: int, rate: float, focus: Focus) -> torch.Tensor:
        """One step on a random batch; returns the loss."""
        self.optimiser.param_groups[0]["lr"] = rate
        cpu = torch.Generator().manual_seed(self.step * 7919 + 13)
        indices = torch.randint(len(domain.latents), (size,), generator=cpu)
        told = round(size * focus.single)
        if told:
            indices[:told] = domain.single[
                torch.randint(len(domain.single), (told,), generator=cpu)
            ]
        keep = torch.rand(size, generator=cpu) >= 0.1
        context = domain.context(indices, keep).to(self.device)
        loss = noise_loss(
            self.unet,
            domain.latents[indices].to(self.device),
            context,
            self.generator,
            focus.early,
        )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(0.999, (self.step + 1) / (self.step + 10))
        for key, value in self.unet.state_dict().items():
            self.average[key].lerp_(value, 1 - decay)
        return loss.detach()

    def save(self, folder: Path) -> None:
        """Averaged weights for use, and the state to resume from."""
        narrow.save(self.average, self.unet.widths, folder / "unet.safetensors")
        state = {
            "unet": self.unet.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "generator": self.generator.get_state(),
            "step": self.step,
        }
        torch.save(state, folder / "resume.tmp")
        (folder / "resume.tmp").replace(folder / "resume.pt")

    def resume(self, folder: Path) -> None:
        """Continue from `folder` where it holds a saved state."""
        if not (folder / "resume.pt").is_file():
            return
        state = torch.load(folder / "resume.pt", weights_only=True, map_location=self.device)
        self.unet.load_state_dict(state["unet"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"].cpu())
        self.average, self.step = state["average"], state["step"]


def train(trainer: Trainer, domain: Domain, options: argparse.Namespace) -> None:
    """Train to `steps` steps (all runs together, so the rates do not hang on the clock)."""
    steps, focus = options.steps, Focus(options.early, options.single)
    began = saved = time.time()
    losses: list[torch.Tensor] = []
    while trainer.step < steps:
        decay = 0.5 * (1 + math.cos(math.pi * trainer.step / steps))
        warm = min(1, trainer.step / 100 + 0.01)
        rate = options.rate * warm * (0.02 + 0.98 * decay)
        losses.append(trainer.update(domain, options.batch, rate, focus))
        if trainer.step % 50 == 0:
            mean = torch.stack(losses[-50:]).mean().item()
            print(f"{trainer.step} {time.time() - began:.0f}s loss {mean:.4f}", flush=True)
        if time.time() - saved > 180:
            saved = time.time()
            trainer.save(options.out)
    trainer.save(options.out)


def main() -> None:
    """Parse the command line, prepare the data, train."""
    parser = finetune.parser(__doc__, steps=10000, batch=16, rate=1.2e-3)
    parser.add_argument("--early", action="store_true")
    parser.add_argument("--single", type=float, default=0.0, metavar="SHARE")
    options = finetune.parse(parser)
    domain = finetune.domain(options)
    trainer = Trainer(narrow.Widths(), options.device, options.seed)
    trainer.resume(options.out)
    train(trainer, domain, options)
