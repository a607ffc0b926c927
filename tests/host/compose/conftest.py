"""The tiny MODEL that the composition tests share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.hosts.compose import Pack, Scene
from support.models.unets import TINY_SD15, build_model


@pytest.fixture
def pack(host: Any) -> Pack:
    return Pack(host)


@pytest.fixture(scope="session")
def tiny(host: Any) -> Any:
    """A MODEL whose every layer matters: random weights scaled by their fan-in."""
    model = build_model(TINY_SD15)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.model.diffusion_model.parameters():
        fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 0
        with torch.no_grad():
            if fan_in:
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)
            elif float(parameter.std()) > 0:
                parameter.normal_(0.0, 0.1, generator=generator)
    return model


@pytest.fixture
def scene(tiny: Any) -> Scene:
    return Scene(tiny)
