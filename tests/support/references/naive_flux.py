"""Image prompts in Flux, written plainly into the attention of the reference's own blocks.

`diffusers` knows XLabs' adapters without masks and InstantX's not at all: here the published maths
of both is one processor, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..models.transformers import Pair
from .naive import attention
from .sampler import on_grid
from .transformers import Case, reference_output


@dataclass(frozen=True, eq=False)
class Term:
    """What one adapter adds. tokens: per row of the batch, (tokens, width). inside: before the
    attention's projection, as InstantX has it, else after the block."""

    layers: Mapping[str, Tensor]
    tokens: Sequence[Tensor]
    weight: float
    inside: bool
    mask: Tensor | None = None

    def added(self, query: Tensor, layer: int, row: int, grid: tuple[int, int]) -> Tensor:
        """query: (length, heads, dim), not rotated; the picture's rows are last. Returns (length,
        heads * dim)."""
        heads = query.shape[1]
        parts: list[Tensor] = []
        for part in ("to_k_ip", "to_v_ip"):
            made = self.tokens[row].double() @ self.layers[f"{layer}.{part}.weight"].double().T
            if self.inside:
                split = made.unflatten(-1, (heads, -1))
                norm = (split.square().mean(-1, keepdim=True) + 1e-5).sqrt()
                parts.append((split / norm).flatten(-2))
            else:
                parts.append(made + self.layers[f"{layer}.{part}.bias"].double())
        key, value = parts
        out = self.weight * attention(query.flatten(-2), key, value, heads)
        return out if self.mask is None else out * self._placed(len(out), grid)

    def _placed(self, length: int, grid: tuple[int, int]) -> Tensor:
        """(length, 1): the mask for the picture's rows, its mean for rows of text before them."""
        assert self.mask is not None
        placed = on_grid(self.mask[0], grid).reshape(-1, 1)
        return torch.cat([placed.mean().expand(length - len(placed), 1), placed])


def halves(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An adapter file's projector and layers, under official names."""
    projector, layers = {}, {}
    for key, value in state.items():
        root, _, name = key.partition(".")
        if root in ("image_proj", "ip_adapter_proj_model"):
            projector[name] = value
        elif root == "ip_adapter":
            layers[name] = value
        else:
            number, part = key.split(".")[1], key.split("_")[-2]
            layers[f"{number}.to_{part}_ip.{key.rsplit('.', 1)[-1]}"] = value
    return projector, layers


def tokens_of(projector: Mapping[str, Tensor], pooled: Tensor) -> Tensor:
    """Of all pictures, one after another: (tokens, width)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, projector[f"{name}.weight"], projector[f"{name}.bias"])

    deep = "proj.0.weight" in projector
    made = (
        linear("proj.2", functional.gelu(linear("proj.0", pooled)))
        if deep
        else linear("proj", pooled)
    )
    width = len(projector["norm.weight"])
    given = (projector["norm.weight"], projector["norm.bias"])
    return functional.layer_norm(made.reshape(-1, width), (width,), *given)


def naive_output(pair: Pair, case: Case) -> Tensor:
    """What the reference predicts with these adapters: row 0 uncond, row 1 cond."""
    terms = []
    for state, weight, cond, uncond in zip(
        case.adapters, case.weights, case.cond, case.uncond, strict=True
    ):
        projector, layers = halves(state)
        rows = [tokens_of(projector, features) for features in (uncond, cond)]
        assert isinstance(weight, (int, float))
        terms.append(Term(layers, rows, weight, "proj.0.weight" in projector, case.mask))
    network, plain = pair.reference, dict(pair.reference.attn_processors)
    height, width = pair.latents().shape[-2:]
    grid = (height // 2, width // 2)
    network.set_attn_processor(
        {name: NaiveFluxAttention(terms, number, grid) for number, name in enumerate(plain)}
    )
    try:
        return reference_output(pair)
    finally:
        network.set_attn_processor(plain)


@dataclass(frozen=True, eq=False)
class NaiveFluxAttention:
    """A processor for the attention of block `layer`: double blocks give the terms' share to the
    picture's rows, single ones to all."""

    terms: Sequence[Term]
    layer: int
    grid: tuple[int, int]

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        """`diffusers` calls this: hidden_states (rows, length, width)."""
        from diffusers.models.embeddings import apply_rotary_emb

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1))

        image = [heads(part(hidden_states)) for part in (attn.to_q, attn.to_k, attn.to_v)]
        plain = image[0] = attn.norm_q(image[0])
        image[1] = attn.norm_k(image[1])
        text, joint = 0, image
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.shape[1]
            parts = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            words = [heads(part(encoder_hidden_states)) for part in parts]
            words = [attn.norm_added_q(words[0]), attn.norm_added_k(words[1]), words[2]]
            joint = [torch.cat(both, dim=1) for both in zip(words, image, strict=True)]
        turned: list[Any] = [
            apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in joint[:2]
        ]
        q, k, v = (x.flatten(-2) for x in [*turned, joint[2]])
        out = torch.stack([attention(*row, attn.heads) for row in zip(q, k, v, strict=True)])
        after = self._add(out, plain, text)
        if encoder_hidden_states is None:
            return out.float()
        inside = out.float()
        outs = (attn.to_out[0](inside[:, text:]), attn.to_add_out(inside[:, :text]))
        return outs if after is None else (*outs, after.float())

    def _add(self, out: Tensor, query: Tensor, text: int) -> Tensor | None:
        """Add the terms inside the attention to `out`; return those that come after the block."""
        after = None
        for term in self.terms:
            if not term.inside and f"{self.layer}.to_k_ip.weight" not in term.layers:
                continue
            rows = range(len(out))
            share = [term.added(query[row], self.layer, row, self.grid) for row in rows]
            if term.inside:
                out[:, text:] += torch.stack(share)
            else:
                after = torch.stack(share) + (0 if after is None else after)
        return after
