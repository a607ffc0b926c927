"""SD3 and SD3.5 in ComfyUI: which MODELs they are, and how their blocks carry image prompts.

No host tells what a block attends with but its attention's override, which sees all of it.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from torch import Tensor, nn
from torch.compiler import is_compiling

from ...adapters.wiring import KEY, KEY_NORM, VALUE, Wiring
from ...attention.folding import Norms
from ...attention.joined import Attended
from ...bases.layout import Layer, Layout
from ...bases.sd3 import JOINT, sd3_layout
from ..linear import effective
from .transformer import Args, Around, Block, Kind, Learning, with_override


def read_sd3(network: Any) -> Layout | None:
    """The layout of an MMDiT; None for any other network."""
    if not isinstance(network, MMDiT):
        return None
    return sd3_layout(network.hidden_size, len(network.joint_blocks), _normalises(network))


def _normalises(network: Any) -> bool:
    """Whether queries and keys are normalised head by head: SD3.5's are, SD3's are not."""
    return not isinstance(network.joint_blocks[0].x_block.attn.ln_q, nn.Identity)


class _Run:
    """One run of a block with its terms."""

    def __init__(self, around: Around, args: Args) -> None:
        self.around, self.text = around, int(args["txt"].shape[1])
        self.rows = self.text + int(args["img"].shape[1])
        self.seen = False

    def attended(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Tensor:
        """The attention's output with the terms in the picture's rows. All (rows, length, width),
        but that value may come by head."""
        if query.shape[1] != self.rows:  # the picture's alone, in some blocks of SD3.5-Medium
            return output
        around = self.around
        if not is_compiling():  # where the host runs this apart, and nothing may be noted
            self.seen = True
        value = value if value.ndim == 3 else value.flatten(-2)
        given = Attended(*(part[:, self.text :] for part in (query, key, value)))
        output = output if around.frame.fresh else output.clone()
        sight, rows = around.sight(0), output[:, self.text :]
        around.ready.add_joined_(rows, given, sight)
        added = around.ready.added_inside(rows, given.query, sight)
        if added is not rows:
            output[:, self.text :] = added
        return output


def _norms(network: Any, layer: Layer) -> Norms:
    """A block's own, as the network that samples has them."""
    attention = network.joint_blocks[layer.block.number].x_block.attn
    return Norms(attention.ln_q.weight, attention.ln_k.weight)


def _carry(around: Around, block: Block, args: Args) -> dict[str, Any]:
    """Run a block with its terms."""
    run = _Run(around, args)
    options = with_override(args["transformer_options"], run.attended)
    out = block({**args, "transformer_options": options})
    if not run.seen and not is_compiling():
        around.frame.unseen = around.layer
    return out


def _begin(network: Any, layer: Layer) -> dict[str, Tensor]:
    """Keys as the block makes them of text; values of zero, so that the base is as it was."""
    attention = network.joint_blocks[layer.block.number].context_block.attn
    key = effective(attention.qkv)[layer.width : 2 * layer.width]
    norm = attention.ln_k.weight.detach().float()
    return {KEY: key, VALUE: torch.zeros_like(key), KEY_NORM: norm}


SD3_KIND = Kind(
    read_sd3,
    {JOINT: "double_block"},
    _carry,
    lambda network: network.patch_size,
    Learning(
        Wiring.NORMED,
        lambda network: network.hidden_size,
        lambda network: network.context_embedder.in_features,
        _begin,
    ),
    norms=lambda network, layer: _norms(network, layer),
)
