"""Graphs for workflows/ on Flux.1 and SD3.5. See workflow_graphs.py."""

from __future__ import annotations

from tools.described import graph
from tools.graph import KONTEXT, SD35, SIGLIP, VIT_L, Base, Graph
from workflow_graphs import half

XLABS, XLABS_V2 = "flux-ip-adapter.safetensors", "flux-ip-adapter-v2.safetensors"


@graph(
    "Flux with one picture",
    """An image prompt on Flux.1 [dev]: the same nodes, with an adapter made for it. Three loaders
bring Flux, two more adapter and encoder. *weight* around 0.9 is its publisher's; *ease in* lets the
first blocks alone. There is no negative prompt: Flux is sampled at cfg 1.""",
)
def flux(g: Graph) -> None:
    base = Base.flux(g, "a portrait in a garden, soft light")
    base.save(base.prompted(XLABS_V2, VIT_L, g.picture("Image prompt"), weight=0.9))


@graph(
    "Flux with mask and two pictures",
    """Two pictures on Flux.1, each in its own half. *IPAdapter Unified Loader* finds the adapter
and its encoder: STANDARD is XLabs' first version, PLUS the second or InstantX's. A mask painted by
right-click, *Open in MaskEditor*, works as well.""",
)
def flux_mask(g: Graph) -> None:
    base = Base.flux(g, "two friends at a table in a café")
    model = None
    for side in ("Left", "Right"):
        patched = base.apply(
            "IPAdapterAdvanced",
            side,
            image=g.picture(f"{side} picture"),
            attn_mask=half(g, f"{side} half", left=side == "Left"),
            weight=0.9,
            **({"model": model} if model else {}),
        )
        model = patched["MODEL"]
    base.save(patched)


@graph(
    "Flux with a ControlNet",
    """The image prompt gives the look, a ControlNet for Flux.1 the outlines. The order of the two
does not matter. Load the same picture twice, or two different ones.""",
)
def flux_controlnet(g: Graph) -> None:
    base = Base.flux(g, "a portrait, soft light")
    patched = base.prompted(XLABS, VIT_L, g.picture("Look"), weight=0.9)
    edges = g.add("Canny", image=g.picture("Outlines"), low_threshold=0.2, high_threshold=0.6)
    control = g.add("ControlNetLoader", control_net_name="flux-canny-controlnet-v3.safetensors")
    controlled = g.add(
        "ControlNetApplyAdvanced",
        positive=base.positive,
        negative=base.negative,
        control_net=control["CONTROL_NET"],
        image=edges["IMAGE"],
        strength=0.7,
    )
    base.save(patched, positive=controlled["positive"], negative=controlled["negative"])


@graph(
    "SD3.5 with one picture",
    """An image prompt on Stable Diffusion 3.5 Large. The adapter wants SigLIP as its encoder and
depends on the noise level: its 1.6 GB stay beside the checkpoint. Its publisher's *weight* is 0.5.
It was not made for Medium or Turbo.""",
)
def sd35(g: Graph) -> None:
    sampler = {"seed": 0, "steps": 28, "cfg": 4.5, "sampler_name": "euler"}
    sampler |= {"scheduler": "sgm_uniform"}
    base = Base.of(g, "a portrait in a garden, soft light", SD35, sampler=sampler)
    image = g.picture("Image prompt")
    base.save(base.prompted("sd3.5-large-ip-adapter.bin", SIGLIP, image, weight=0.5))


@graph(
    "Kontext beside an image prompt",
    """Flux.1 Kontext changes the picture *To be changed* as the words say; the image prompt brings
the look of another one. A mask on the Apply node covers the result only, never Kontext's own
picture.""",
)
def kontext(g: Graph) -> None:
    base = Base.flux(g, "place the person on a beach", KONTEXT, guidance=2.5)
    scaled = g.add(
        "ImageScale",
        image=g.picture("To be changed"),
        upscale_method="lanczos",
        width=1024,
        height=1024,
        crop="center",
    )
    latent = g.add("VAEEncode", pixels=scaled["IMAGE"], vae=base.checkpoint["VAE"])
    seen = g.add("ReferenceLatent", conditioning=base.positive, latent=latent["LATENT"])
    patched = base.prompted(XLABS_V2, VIT_L, g.picture("Look"), weight=0.7)
    base.save(patched, positive=seen["CONDITIONING"])
