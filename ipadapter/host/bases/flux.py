"""Flux.1 and Chroma in ComfyUI: which MODELs they are, and how their blocks carry image prompts.

Newer hosts give a block's query before its rotary embedding and let its attention be added to; on
older ones the query is seen in the attention's override, and the rotation is turned back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.layers import DoubleStreamBlock
from comfy.ldm.flux.model import Flux
from einops import rearrange
from torch import Tensor

from ...adapters.wiring import KEY, KEY_BIAS, VALUE, VALUE_BIAS, Wiring
from ...attention.transformer_patch import counted, unroped
from ...bases.flux import CHROMA, DOUBLE, FLUX, SINGLE, flux_layout
from ...bases.layout import Layer, Layout
from .transformer import Args, Around, Block, Kind, Learning, with_override, with_patches

# Whether blocks call `attn1_patch` and `attn1_output_patch`, which came with 0.17.
_TELLS = "attn1_output_patch" in DoubleStreamBlock.forward.__code__.co_consts
_ROWS = "b h l d -> b l (h d)"


def read_flux(network: Any) -> Layout | None:
    """The layout of a network of Flux's blocks; None for any other."""
    if not isinstance(network, (Flux, Chroma)):
        return None
    parameters = network.params
    if getattr(parameters, "global_modulation", False):  # FLUX.2, which is of the same class
        return None
    name = CHROMA if isinstance(network, Chroma) else FLUX
    return flux_layout(
        name,
        parameters.hidden_size,
        parameters.num_heads,
        parameters.depth,
        parameters.depth_single_blocks,
    )


class _Run:
    """One run of a block with its terms."""

    def __init__(self, around: Around, args: Args) -> None:
        self.around, self.rotation = around, args.get("pe")
        self.text = _text_rows(around, args)
        # Single blocks give the text rows their share, too; double ones keep text apart.
        self.start = 0 if around.layer.block.name == SINGLE else self.text
        self.query: Tensor | None = None

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Transformer options by which the host shows the block's attention."""
        if _TELLS:
            return with_patches(given, attn1_patch=self.note, attn1_output_patch=self.finish)
        return with_override(given, self.attended)

    def note(self, query: Tensor, *_: Tensor, **_given: Any) -> dict[str, Tensor]:
        """An `attn1_patch`. query: (rows, heads, length, dim), normalised, not rotated."""
        self.query = rearrange(query[:, :, self.start :], _ROWS)
        return {}

    def finish(self, output: Tensor, _extra: Any = None) -> Tensor:
        """An `attn1_output_patch`: the attention's output, (rows, length, width), with terms."""
        around = self.around
        if self.query is None or not counted(around.ready.inside):
            return output
        output = output if around.frame.fresh else output.clone()
        part = output[:, self.start :]
        sight = around.sight(self.text - self.start)
        added = around.ready.added_inside(part, self.query, sight)
        if added is not part:
            output[:, self.start :] = added
        return output

    def attended(self, query: Tensor, _key: Tensor, _value: Tensor, output: Tensor) -> Tensor:
        """For the attention's override, which sees the query rotated. A block that is computed
        again for its gradients comes here again."""
        seen, turn = query[:, :, self.start :], self.rotation
        turned = seen if turn is None else unroped(seen, turn[:, :, self.start :])
        self.query = rearrange(turned, _ROWS)
        return self.finish(output)

    def after(self, image: Tensor) -> Tensor:
        """The rows of the picture as the block leaves them, with their terms."""
        around = self.around
        if self.query is None or not counted(around.ready.after):
            return image
        # A copy: who wraps the block may have kept what it gave.
        return around.ready.added_after(image.clone(), self.query, around.sight(0))


def _text_rows(around: Around, args: Args) -> int:
    if "txt" in args:
        around.frame.text = int(args["txt"].shape[1])
    told = args["transformer_options"].get("img_slice")
    return around.frame.text if told is None else int(told[0])


def _carry(around: Around, block: Block, args: Args) -> dict[str, Any]:
    """Run a block with its terms: those inside its attention, then those after it."""
    run = _Run(around, args)
    out = block({**args, "transformer_options": run.options(args["transformer_options"])})
    if run.query is None:
        around.frame.unseen = around.layer
    if around.layer.block.name == DOUBLE:
        return {**out, "img": run.after(out["img"])}
    return out


def _text_dim(network: Any) -> int:
    return int(network.params.context_in_dim)


def _begin(network: Any, layer: Layer) -> dict[str, Tensor]:
    """All zeros, as XLabs' own training begins: the base is as it was, and values learn first.
    https://github.com/XLabs-AI/x-flux/blob/47495425dbed499be1e8e5a6e52628b07349cba2/src/flux/modules/layers.py#L239
    """
    weight, bias = torch.zeros(layer.width, _text_dim(network)), torch.zeros(layer.width)
    return {KEY: weight, VALUE: weight, KEY_BIAS: bias, VALUE_BIAS: bias}


FLUX_KIND = Kind(
    read_flux,
    {DOUBLE: "double_block", SINGLE: "single_block"},
    _carry,
    lambda network: network.patch_size,
    Learning(Wiring.XLABS, _text_dim, _text_dim, _begin),
    {SINGLE: ("double_block", 0)},
)
