"""Flow matching against what is published: `diffusers`' schedulers, and Cosmos' own loss."""

from __future__ import annotations

import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ipadapter.training.flow import FlowSchedule


def test_fluxs_shift_is_its_schedulers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    times = torch.linspace(0.01, 1.0, 50)
    theirs = scheduler.time_shift(1.15, 1.0, times)
    assert torch.allclose(FlowSchedule(math.exp(1.15)).shifted(times), theirs, atol=1e-6)


def test_cosmos_loss_is_the_flows() -> None:
    """The error of the picture, times (1 + s^2) / s^2, is the flow's error, times a number between
    a half and one."""
    generator = torch.Generator().manual_seed(1)
    picture, noise, predicted = torch.randn(3, 6, 16, 1, 4, 4, generator=generator)
    times = torch.linspace(0.05, 0.95, 6)
    share = times.view(-1, 1, 1, 1, 1)
    sigma = share / (1 - share)
    noised = picture + sigma * noise
    flow = FlowSchedule()
    assert torch.allclose(flow.noisy(picture, noise, times), noised / (1 + sigma), atol=1e-5)
    foreseen = noised * (1 - share) - share * predicted
    theirs = (picture - foreseen).square() * (1 + sigma.square()) / sigma.square()
    ours = (flow.target(picture, noise, times) - predicted).square()
    factor = share.square() + (1 - share).square()
    assert torch.allclose(theirs, ours * factor, rtol=1e-3, atol=1e-4)
    assert factor.min() >= 0.5 and factor.max() <= 1.0
