"""The LoRA inside a FaceID adapter, as a LoRA file's state dict for the host's UNet.

FaceID adapters are trained together with a low-rank change of every attention of the UNet, and
their files hold it beside `to_k_ip` and `to_v_ip`. The separate `_lora.safetensors` is a copy of it
in another layout, so it can be done without.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..bases.layout import BlockId
from ..errors import Problem
from ..files.tensors import TensorMap

# Where the host's blocks keep their SpatialTransformer.
_PLACES = {
    "input": "input_blocks.{}.1",
    "middle": "middle_block.1",
    "output": "output_blocks.{}.1",
}
_PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}


def own_lora(ip_adapter: TensorMap, blocks: Sequence[BlockId], name: str) -> dict[str, Tensor]:
    """Tensors named as the host's LoRA loader reads them; empty if the adapter holds none.

    blocks: the model's transformer blocks in adapter order (input, output, middle); entry n has
    the layers 2n (self-attention) and 2n + 1 (cross-attention). `name` is for messages.
    """
    state: dict[str, Tensor] = {}
    for index, block in enumerate(blocks):
        place = _PLACES[block.name].format(block.number)
        for part in (0, 1):
            target = f"diffusion_model.{place}.transformer_blocks.{block.index}.attn{part + 1}"
            for ours, theirs in _PROJECTIONS.items():
                for end in ("down", "up"):
                    key = f"{2 * index + part}.{ours}_lora.{end}.weight"
                    if key in ip_adapter:
                        state[f"{target}.{theirs}.lora_{end}.weight"] = ip_adapter[key]
    found = sum("_lora." in key for key in ip_adapter)
    if len(state) != found:
        raise Problem.WRONG_FILE(
            f"{name} holds a LoRA of {found} tensors, of which {len(state)} have a place in this "
            f"model of {len(blocks)} transformer blocks. Use the LoRA file that belongs to the "
            "adapter."
        )
    return state
