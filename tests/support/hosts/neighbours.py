"""Other people's nodes and packs, as an image prompt meets them in a graph.

Each changes a scene (a MODEL, prompts, a guider) through the host's own nodes, or imitates what a
known pack does to a MODEL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..models.unets import TINY_SD15, host_config
from .compose import Scene, conditioning, seeded, text

Change = Callable[[Any, Scene], Scene]  # host, scene -> scene


def node(node_id: str, **inputs: Any) -> Change:
    """A core node that takes a MODEL and returns one."""
    return lambda host, scene: scene.but(model=host.call(node_id, model=scene.model, **inputs)[0])


def lora(host: Any, scene: Scene) -> Scene:
    """A LoRA on the cross-attention's query, key and output."""
    import comfy.sd
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(scene.model.model.model_config.unet_config)
    state = scene.model.model.diffusion_model.state_dict()
    patch: dict[str, Tensor] = {}
    for diffusers, own in names.items():
        if ".attn2.to_" in diffusers and diffusers.endswith("weight"):
            rows, columns = state[own].shape
            key = "lora_unet_" + diffusers.removesuffix(".weight").replace(".", "_")
            patch[f"{key}.lora_up.weight"] = 0.3 * seeded(8, rows, 4)
            patch[f"{key}.lora_down.weight"] = 0.3 * seeded(9, 4, columns)
    assert patch
    return scene.but(model=comfy.sd.load_lora_for_models(scene.model, None, patch, 1.0, 0.0)[0])


def control_net(host: Any, scene: Scene) -> Scene:
    """The host's own ControlNet, tiny, on both prompts."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    config = host_config(TINY_SD15)
    config = {key: config[key] for key in config if key not in ("out_channels", "legacy")}
    config.pop("transformer_depth_output")
    net = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, device="cpu", operations=comfy.ops.manual_cast
    )
    generator = torch.Generator().manual_seed(4)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    control = comfy.controlnet.ControlNet(net.train(False), load_device=torch.device("cpu"))
    hint = torch.rand(1, 128, 128, 3, generator=generator)
    positive, negative = host.call(
        "ControlNetApplyAdvanced",
        positive=scene.positive,
        negative=scene.negative,
        control_net=control,
        image=hint,
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
    )
    return scene.but(positive=positive, negative=negative)


def dual_cfg(host: Any, scene: Scene) -> Scene:
    """Three lists of conds, of which the host calls the negative number 0."""

    def guider(model: Any, scene: Scene) -> Any:
        return host.call(
            "DualCFGGuider",
            model=model,
            cond1=scene.positive,
            cond2=conditioning(text(6)),
            negative=scene.negative,
            cfg_conds=4.0,
            cfg_cond2_negative=3.0,
            style="regular",
        )[0]

    return scene.but(guider=guider)


def perp_neg_guider(host: Any, scene: Scene) -> Scene:
    """A third list, the empty prompt."""

    def guider(model: Any, scene: Scene) -> Any:
        return host.call(
            "PerpNegGuider",
            model=model,
            positive=scene.positive,
            negative=scene.negative,
            empty_conditioning=conditioning(text(6)),
            cfg=4.0,
            neg_scale=1.0,
        )[0]

    return scene.but(guider=guider)


AREA = (8, 12, 8, 4)  # height, width, y, x in latent pixels


def area_conds(
    host: Any, scene: Scene, area: tuple[int, int, int, int] = AREA, seed: int = 6
) -> Scene:
    """A second prompt for a part of the picture; the host then copies the negative to that part."""
    height, width, y, x = (8 * number for number in area)
    (cut,) = host.call(
        "ConditioningSetArea",
        conditioning=conditioning(text(seed)),
        width=width,
        height=height,
        x=x,
        y=y,
        strength=0.7,
    )
    return scene.but(positive=scene.positive + cut)


def mask_conds(host: Any, scene: Scene) -> Scene:
    """A second prompt under a mask."""
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:, 64:] = 1.0
    (masked,) = host.call(
        "ConditioningSetMask",
        conditioning=conditioning(text(6)),
        mask=mask,
        set_cond_area="default",
        strength=0.8,
    )
    return scene.but(positive=scene.positive + masked)


def tiled(host: Any, scene: Scene) -> Scene:
    """Tiles of the picture in one batch, each with all chunks: the rows multiply, `cond_or_uncond`
    stays (as TiledDiffusion does)."""

    def split(apply_model: Any, arguments: dict[str, Any]) -> Tensor:
        x, c = arguments["input"], dict(arguments["c"])
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        places = [
            (slice(i, i + height), slice(j, j + width)) for i in (0, height) for j in (0, width)
        ]
        c["c_crossattn"] = c["c_crossattn"].repeat(len(places), 1, 1)
        tiles = torch.cat([x[:, :, down, across] for down, across in places])
        done = apply_model(tiles, arguments["timestep"].repeat(len(places)), **c)
        out = torch.empty_like(x)
        for (down, across), tile in zip(places, done.chunk(len(places)), strict=True):
            out[:, :, down, across] = tile
        return out

    model = scene.model.clone()
    model.set_model_unet_function_wrapper(split)
    return scene.but(model=model)


def foreign_replacement(query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Tensor:
    """What another pack puts in a slot: attention with flattened logits."""
    heads = extra["n_heads"]

    def split(tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)

    out = torch.nn.functional.scaled_dot_product_attention(
        0.7 * split(query), split(key), split(value)
    )
    return out.transpose(1, 2).flatten(2)


def foreign_function(host: Any, scene: Scene, index: tuple[int, ...] = ()) -> Scene:
    """A plain function in every slot, without a look at what was there: under the short keys that
    packs use for SD1.5, or under the full ones."""
    model = scene.model.clone()
    for block in BLOCKS:
        model.set_model_attn2_replace(foreign_replacement, *block, *index)
    known = {"base": foreign_replacement, "model": scene.model}
    return scene.but(model=model, reference={**scene.reference, **known})


def foreign_chain(host: Any, scene: Scene, index: tuple[int, ...] = ()) -> Scene:
    """A polite pack: it calls what held the slot, and adds to that."""
    model = scene.model.clone()
    slots = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for block in BLOCKS:
        before = slots.get((*block, *index), slots.get(block))

        def chained(
            query: Tensor, key: Tensor, value: Tensor, extra: Any, before: Any = before
        ) -> Tensor:
            base = before or plain_attention
            return base(query, key, value, extra) + foreign_delta(query, query)

        model.set_model_attn2_replace(chained, *block, *index)
    known = {"terms": (*scene.reference.get("terms", ()), foreign_delta), "model": scene.model}
    return scene.but(model=model, reference={**scene.reference, **known})


def plain_attention(query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Tensor:
    import comfy.ldm.modules.attention as host_attention

    return host_attention.optimized_attention(query, key, value, extra["n_heads"])


class ForeignStack:
    """Other IP-Adapter packs' object: callbacks, called one after another and summed."""

    def __init__(self) -> None:
        self.callbacks: list[Any] = []

    def add(self, callback: Any, **kwargs: Any) -> None:
        self.callbacks.append((callback, kwargs))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Tensor:
        out = plain_attention(query, key, value, extra)
        for callback, kwargs in self.callbacks:
            sigma = float(extra["sigmas"][0])
            if kwargs["sigma_end"] <= sigma <= kwargs["sigma_start"]:
                out = out + callback(out, query, key, value, extra, **kwargs)
        return out

    def to(self, _device: Any) -> ForeignStack:
        return self


def foreign_delta(out: Tensor, query: Tensor, *_: Any, **__: Any) -> Tensor:
    return 0.3 * query


def stack_foreign(model: Any) -> Any:
    """The de facto protocol: stack onto an occupied slot, else install an object of one's own."""
    model = model.clone()
    options = model.model_options["transformer_options"]
    slots = options.get("patches_replace", {}).get("attn2", {})
    kwargs = {"sigma_start": 999999999.9, "sigma_end": 0.0}
    for block in BLOCKS:
        if block in slots:
            slots[block].add(foreign_delta, **kwargs)
        else:
            stack = ForeignStack()
            stack.add(foreign_delta, **kwargs)
            model.set_model_attn2_replace(stack, *block)
    return model


def foreign_add(host: Any, scene: Scene) -> Scene:
    """A pack that stacks onto whatever holds the slot."""
    known = {"terms": (foreign_delta,), "model": scene.model}
    return scene.but(model=stack_foreign(scene.model), reference={**scene.reference, **known})


BLOCKS = (
    *(("input", n) for n in (1, 2, 4, 5, 7, 8)),
    *(("output", n) for n in range(3, 12)),
    ("middle", 0),
)


def attention_couple(host: Any, scene: Scene) -> Scene:
    """Regional prompts inside the block: the positive rows are repeated before attn2, once per
    region, and blended after it."""
    first, second = scene.positive[0][0], text(6)
    share = 0.6

    def before(query: Tensor, context: Tensor, value: Tensor, extra: Any) -> Any:
        queries, contexts = [], []
        for chunk, texts, index in zip(
            query.chunk(len(extra["cond_or_uncond"])),
            context.chunk(len(extra["cond_or_uncond"])),
            extra["cond_or_uncond"],
            strict=True,
        ):
            if index == 1:
                queries.append(chunk)
                contexts.append(texts)
            else:
                queries += [chunk, chunk]
                contexts += [first.expand_as(texts), second.expand_as(texts)]
        context = torch.cat(contexts)
        return torch.cat(queries), context, context

    def after(out: Tensor, extra: Any) -> Tensor:
        parts, rows = [], len(extra["sigmas"])
        for index in extra["cond_or_uncond"]:
            taken, out = out[: rows * (1 + (index == 0))], out[rows * (1 + (index == 0)) :]
            parts.append(taken if index == 1 else share * taken[:rows] + (1 - share) * taken[rows:])
        return torch.cat(parts)

    model = scene.model.clone()
    model.set_model_attn2_patch(before)
    model.set_model_attn2_output_patch(after)
    reference = {**scene.reference, "positive": [first, second]}
    return scene.but(model=model, reference=reference)


def windowed_model(host: Any, model: Any) -> Any:
    """A MODEL that samples a batch in core's context windows of four."""
    # Newer hosts want to be told whether noise is the same in every window.
    newer = set(host.node("ContextWindowsManual").INPUT_TYPES()["required"]) & {"freenoise"}
    return host.call(
        "ContextWindowsManual",
        **dict.fromkeys(newer, False),
        model=model,
        context_length=4,
        context_overlap=1,
        context_schedule="standard_static",
        context_stride=1,
        closed_loop=False,
        fuse_method="pyramid",
        dim=0,
    )[0]


def context_windows(host: Any, scene: Scene) -> Scene:
    """Core context windows over the batch."""
    model = windowed_model(host, scene.model)
    # Five steps: the host (0.3.75) compares all noise levels with all latents' at once, which fails
    # unless there are as many latents as levels.
    return scene.but(model=model, batch=6, steps=5)
