"""An independent reference for image prompts: what the sampler should do, written plainly.

It replaces the forward pass of the UNet's attn2 modules in place, knows nothing of slots, patches,
wrappers or `cond_or_uncond`, and tells rows apart by the text that they carry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .naive import attention

State = Mapping[str, Mapping[str, Tensor]]


@dataclass(eq=False)
class NaiveAdapter:
    """One adapter: raw layer weights, tokens (items, tokens, dim), a weight or one per item."""

    state: State
    cond: Tensor
    uncond: Tensor
    weight: float | Sequence[float] = 1.0
    mask: Tensor | None = None
    active: Callable[[float], bool] = lambda sigma: True
    strength: Callable[[float], float] = lambda sigma: 1.0
    only: Tensor | None = None  # text of the one prompt that it serves, None for all rows

    def delta(self, query: Tensor, row: Row, layer: int, heads: int) -> Tensor:
        """query: (length, width), one row. Returns its share of the attention's output, in fp64."""
        tokens = self.cond if row.is_cond else self.uncond
        tokens = tokens[min(row.item, len(tokens) - 1)].double()
        weight = self.weight
        if not isinstance(weight, (int, float)):
            weight = weight[min(row.item, len(weight) - 1)]
        weights = self.state["ip_adapter"]
        key = tokens @ weights[f"{2 * layer + 1}.to_k_ip.weight"].double().T
        value = tokens @ weights[f"{2 * layer + 1}.to_v_ip.weight"].double().T
        out = weight * self.strength(row.sigma) * attention(query, key, value, heads)
        return out if self.mask is None else out * self.mask_on(row)

    def mask_on(self, row: Row) -> Tensor:
        """(length, 1): the picture's mask, cut to what the row shows, on the row's grid."""
        assert self.mask is not None
        mask = self.mask[min(row.item, len(self.mask) - 1)]
        if row.area is not None:  # in latent pixels; masks here have 8 pixels for each
            height, width, y, x = (8 * number for number in row.area)
            mask = mask[y : y + height, x : x + width]
        return on_grid(mask, row.grid).reshape(-1, 1)


def on_grid(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean of a mask (height, width) over each cell: every pixel is cut into as many parts as
    there are cells, so that cells are whole parts. Between pixels where cells are smaller."""
    mask = mask.double()
    for axis, cells in enumerate(grid):
        pixels, lines = mask.shape[axis], mask.transpose(axis, 1)
        if cells < pixels:
            lines = lines.repeat_interleave(cells, 1).unflatten(1, (cells, pixels)).mean(2)
        else:
            lines = functional.interpolate(lines[None], size=cells, mode="linear")[0]
        mask = lines.transpose(axis, 1)
    return mask


@dataclass
class Row:
    """What is true of one row of a batch."""

    is_cond: bool
    item: int
    sigma: float
    grid: tuple[int, int]
    area: tuple[int, int, int, int] | None = None


@dataclass(eq=False)
class Naive:
    """The reference as a whole.

    positive: the texts, (1, tokens, dim), whose rows are cond. areas: for conds that are cut out of
    the picture, text and area; no text means all texts. base: what another pack put in the place of
    text attention. terms: what another pack added to it.
    """

    adapters: Sequence[NaiveAdapter]
    positive: Sequence[Tensor]
    areas: Sequence[tuple[Tensor | None, tuple[int, int, int, int]]] = ()
    base: Callable[..., Tensor] | None = None
    terms: Sequence[Callable[..., Tensor]] = ()
    calls: list[int] = field(default_factory=list)

    def forward(self, module: Any, layer: int, x: Tensor, text: Tensor, options: Any) -> Tensor:
        query, key, value = module.to_q(x), module.to_k(text), module.to_v(text)
        extra = {**options, "n_heads": module.heads, "dim_head": module.dim_head}
        if self.base is None:
            out = torch.stack(
                [
                    attention(q, k, v, module.heads)
                    for q, k, v in zip(query, key, value, strict=True)
                ]
            )
        else:
            out = self.base(query, key, value, extra).double()
        self.calls.append(len(x))
        text_out = out.float()
        for number, row_text in enumerate(text):
            row = self.row(number, row_text, options)
            for adapter in self.adapters:
                serves = adapter.only is None or torch.equal(row_text, adapter.only[0])
                if serves and adapter.active(row.sigma):
                    out[number] += adapter.delta(query[number], row, layer, module.heads)
        for term in self.terms:
            out = out + term(text_out, query, key, value, extra)
        return module.to_out(out.to(x.dtype))

    def row(self, number: int, text: Tensor, options: Any) -> Row:
        def shows(known: Tensor) -> bool:
            return torch.equal(text, known[0])

        batch = options["sigmas"].shape[0]
        window = options.get("context_window")
        items = torch.arange(max(window.index_list) + 1 if window else batch)
        if window:  # what the host itself gives to this window: newer ones put a frame before it
            items = window.get_tensor(items, dim=0)
        shape = tuple(options["original_shape"][-2:])
        areas = [
            area
            for known, area in self.areas
            if area[:2] == shape and (known is None or shows(known))
        ]
        return Row(
            any(shows(known) for known in self.positive),
            int(items[number % batch]),
            float(options["sigmas"][0]),
            tuple(options["activations_shape"][-2:]),
            areas[0] if areas else None,
        )


@contextmanager
def naive(unet: Any, reference: Naive) -> Iterator[None]:
    """Install the reference on a UNet for a while."""
    named = dict(unet.named_modules())
    names = [name for name in named if name.endswith(".attn2")]
    order = ("input", "output", "middle")
    names = [name for part in order for name in names if name.startswith(part)]
    modules = [named[name] for name in names]
    for layer, module in enumerate(modules):

        def forward(
            x: Tensor,
            context: Tensor,
            value: Tensor | None = None,
            mask: Tensor | None = None,
            transformer_options: Any = None,
            module: Any = module,
            layer: int = layer,
        ) -> Tensor:
            return reference.forward(module, layer, x, context, transformer_options or seen[-1])

        module.forward = forward
    # Hosts before 0.3.60 do not pass the options on to attention.
    seen: list[Any] = []
    handle = unet.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["transformer_options"]), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()
        for module in modules:
            del module.forward
