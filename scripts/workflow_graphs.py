"""The graphs in workflows/, each as a few lines: one capability, a note, official file names.

`scripts/workflows.py` turns them into the files. Inputs that a graph does not name keep the node's
defaults. Here are the first steps; workflow_graphs_more.py goes on, and
workflow_graphs_transformers.py has those for Flux.1 and SD3.5.
"""

from __future__ import annotations

from tools.described import described, graph
from tools.graph import SDXL, Base, Graph, Link

PLUS_SD15 = "ip-adapter-plus_sd15.safetensors"


def graphs() -> list[Graph]:
    """All workflows, the first steps first."""
    # They describe the rest.
    import workflow_graphs_more  # noqa: F401
    import workflow_graphs_transformers  # noqa: F401

    return described()


@graph(
    "Image prompt, without and with",
    """Shows what an image prompt does: the same seed without and with it. Put your picture into
*Image prompt*, and play with *weight*. The three loaders on the left name their files one by one;
any names will do, as long as adapter, encoder and checkpoint belong together.""",
)
def image_prompt(g: Graph) -> None:
    base = Base.of(g, "a photograph, best quality")
    files = base.files("ip-adapter_sd15.safetensors")
    base.compare(image=g.picture("Image prompt"), **files)


@graph(
    "Image prompt, the shortest way",
    """The shortest way. *IPAdapter Unified Loader* finds the adapter and its encoder by what is
in the files. Choose a preset, load a picture, run. *prompt is more important* as weight_type leaves
the text in charge.""",
)
def simple(g: Graph) -> None:
    base = Base.of(g, "a portrait in a garden, best quality")
    patched = base.apply("IPAdapter", image=g.picture("Image prompt"), weight=0.8)
    base.save(patched)


@graph(
    "Style or composition, by weight type",
    """The weight type decides which layers of the UNet listen to the picture: *linear* all of
them alike, *style transfer* those that carry colours and technique, *composition* those that carry
the layout. Compare the three results: same picture, prompt and seed.""",
)
def weight_types(g: Graph) -> None:
    base = Base.of(g, "a cat on a chair, best quality")
    files = base.files(PLUS_SD15)
    image = g.picture("Image prompt")
    for kind in ("linear", "style transfer", "composition"):
        patched = base.apply(
            "IPAdapterAdvanced", kind, image=image, weight=1.0, weight_type=kind, **files
        )
        base.save(patched, kind)


@graph(
    "Two references",
    """Two references in one prompt. *combine_embeds* decides how: *concat* shows both pictures
side by side to the model, *average* one picture halfway between them. *subtract* takes the second
away from the first.""",
)
def two_references(g: Graph) -> None:
    base = Base.of(g, "a portrait, best quality")
    files = base.files(PLUS_SD15)
    both = g.add(
        "ImageBatch", image1=g.picture("First reference"), image2=g.picture("Second reference")
    )
    for method in ("concat", "average"):
        patched = base.apply(
            "IPAdapterAdvanced",
            method,
            image=both["IMAGE"],
            weight=0.8,
            combine_embeds=method,
            **files,
        )
        base.save(patched, method)


def half(g: Graph, title: str, left: bool) -> Link:
    """A mask of one half of a square."""
    black = g.add("SolidMask", value=0.0, width=512, height=512)["MASK"]
    white = g.add("SolidMask", value=1.0, width=256, height=512)["MASK"]
    composite = g.add(
        "MaskComposite",
        title,
        destination=black,
        source=white,
        x=0 if left else 256,
        y=0,
        operation="add",
    )
    return composite["MASK"]


@graph(
    "Only in a part, by mask",
    """A mask confines the image prompt: white acts, black does not. Here it is the left half; a
mask painted by right-click, *Open in MaskEditor*, works as well. The rest of the picture follows
the text alone.""",
)
def mask(g: Graph) -> None:
    base = Base.of(g, "a room with a large window, best quality")
    files = base.files(PLUS_SD15)
    base.save(
        base.apply(
            "IPAdapterAdvanced",
            image=g.picture("Image prompt"),
            attn_mask=half(g, "Left half", left=True),
            weight=0.8,
            **files,
        )
    )


@graph(
    "Two regions",
    """Two regions, each with its own picture and its own prompt. The prompt *Prompt* holds
everywhere. Join the CONDITIONING of the regions with it, or leave it out and let the regions stand
alone.""",
)
def regions(g: Graph) -> None:
    base = Base.of(g, "a street in the evening, best quality")
    params, positive = [], base.positive
    for side, text in {"Left": "a woman in a red coat", "Right": "a man in a blue suit"}.items():
        prompt = g.add("CLIPTextEncode", f"{side} prompt", text=text, clip=base.checkpoint["CLIP"])
        region = g.add(
            "IPAdapterRegionalConditioning",
            side,
            image=g.picture(f"{side} picture"),
            mask=half(g, f"{side} half", left=side == "Left"),
            image_weight=0.8,
            positive=prompt["CONDITIONING"],
        )
        params.append(region["IPADAPTER_PARAMS"])
        positive = g.add(
            "ConditioningCombine", conditioning_1=positive, conditioning_2=region["POSITIVE"]
        )["CONDITIONING"]
    both = g.add("IPAdapterCombineParams", params_1=params[0], params_2=params[1])
    patched = base.apply("IPAdapterFromParams", ipadapter_params=both["IPADAPTER_PARAMS"])
    base.save(patched, positive=positive)


@graph(
    "Style of one, composition of another",
    """The style of one picture with the composition of another. *expand_style* lets the style
act in more layers: stronger, but more of its contents come along. Made for SDXL, works with SD1.5
too.""",
)
def style_and_composition(g: Graph) -> None:
    base = Base.of(g, "a house by a river, best quality", SDXL)
    base.save(
        base.apply(
            "IPAdapterStyleComposition",
            image_style=g.picture("Style"),
            image_composition=g.picture("Composition"),
            weight_style=1.0,
            weight_composition=0.8,
        )
    )


@graph(
    "Precise style",
    """Style transfer that leaks less of the picture's contents: *style_boost* is how hard the
result is pushed away from the picture's composition. It needs a CFG above 1.""",
)
def precise_style(g: Graph) -> None:
    base = Base.of(g, "a lighthouse in a storm, best quality", SDXL)
    base.save(
        base.apply(
            "IPAdapterPreciseStyleTransfer", image=g.picture("Style"), weight=1.0, style_boost=1.0
        )
    )


@graph(
    "A picture to avoid",
    """A picture to move away from. What *Avoid this* shows, its colours and mood above all, is
pushed out of the result, as words of the negative prompt are. It needs a CFG above 1.""",
)
def negative_image(g: Graph) -> None:
    base = Base.of(g, "a mountain lake, best quality")
    files = base.files(PLUS_SD15)
    patched = base.apply(
        "IPAdapterAdvanced",
        image=g.picture("Image prompt"),
        image_negative=g.picture("Avoid this"),
        weight=0.8,
        **files,
    )
    base.save(patched)


@graph(
    "Noise as the picture to avoid",
    """Noise as the negative picture: the result gets cleaner and richer, because the adapter
moves away from noise. *PrepImage* chooses which part of a wide picture the encoder sees. Try types
and strengths of the noise.""",
)
def noise(g: Graph) -> None:
    base = Base.of(g, "a portrait, best quality")
    image = g.add(
        "PrepImageForClipVision",
        image=g.picture("Image prompt"),
        crop_position="center",
        sharpening=0.1,
    )["IMAGE"]
    base.save(
        base.apply(
            "IPAdapterAdvanced",
            image=image,
            image_negative=g.add(
                "IPAdapterNoise", type="dissolve", strength=0.7, blur=2, image_optional=image
            )["IMAGE"],
            weight=0.8,
        )
    )


@graph(
    "More detail from the reference",
    """The encoder works at 224 pixels and misses fine detail. The enhancer lets it look at
enlarged parts of the picture too: *enhance_tiles* 2 are 2 x 2 parts. More tiles, more detail and
more time, once per picture.""",
)
def more_detail(g: Graph) -> None:
    base = Base.of(g, "a portrait, best quality")
    patched = base.apply(
        "IPAdapterClipVisionEnhancer", image=g.picture("Image prompt"), weight=0.8, enhance_tiles=2
    )
    base.save(patched)


@graph(
    "Wide and tall pictures",
    """For wide and tall pictures: the encoder sees a square, so the sides would be lost. *Tiled*
cuts the picture into squares, each steering its own part of the result. Give the latent the shape
of the picture. *tiles* shows what the encoder sees.""",
)
def tiled(g: Graph) -> None:
    base = Base.of(g, "a landscape, best quality", width=768, height=512)
    patched = base.apply(
        "IPAdapterTiled", image=g.picture("A wide picture"), weight=0.7, sharpening=0.1
    )
    g.add("PreviewImage", "tiles", images=patched["tiles"])
    base.save(patched)


@graph(
    "A face",
    """A person's face, by face recognition instead of the image encoder: the likeness stays in
any style and pose. The loader finds the adapter and its LoRA. It needs the package insightface and
its model pack buffalo_l, whose licence allows research only. *face_image* is what was found.""",
)
def face(g: Graph) -> None:
    base = Base.of(g, "a portrait of an astronaut, oil painting, best quality")
    loader = g.add(
        "IPAdapterUnifiedLoaderFaceID",
        model=base.checkpoint["MODEL"],
        preset="FACEID",
        lora_strength=0.6,
    )
    patched = g.add(
        "IPAdapterFaceID",
        model=loader["MODEL"],
        ipadapter=loader["ipadapter"],
        image=g.picture("Face"),
        weight=0.9,
    )
    g.add("PreviewImage", "face_image", images=patched["face_image"])
    base.save(patched)


@graph(
    "With a ControlNet",
    """The image prompt gives the look, the ControlNet the outlines. They work in different
places of the UNet and do not disturb each other. Load the same picture twice, or two different
ones.""",
)
def with_controlnet(g: Graph) -> None:
    base = Base.of(g, "a portrait, best quality")
    patched = base.apply(
        "IPAdapterAdvanced", image=g.picture("Look"), weight=0.7, weight_type="style transfer"
    )
    edges = g.add("Canny", image=g.picture("Outlines"), low_threshold=0.2, high_threshold=0.6)[
        "IMAGE"
    ]
    control = g.add("ControlNetLoader", control_net_name="control_v11p_sd15_canny_fp16.safetensors")
    controlled = g.add(
        "ControlNetApplyAdvanced",
        positive=base.positive,
        negative=base.negative,
        control_net=control["CONTROL_NET"],
        image=edges,
        strength=0.7,
    )
    base.save(patched, positive=controlled["positive"], negative=controlled["negative"])


@graph(
    "With a LoRA",
    """With a LoRA, here one for a few steps: load it before the adapter, so that the adapter
sees the MODEL as it will run. At a CFG near 1 the negative picture has little or no effect.""",
)
def with_lora(g: Graph) -> None:
    base = Base.of(g, "a portrait, best quality")
    lora = g.add(
        "LoraLoaderModelOnly",
        model=base.checkpoint["MODEL"],
        lora_name="lcm-lora-sdv1-5.safetensors",
        strength_model=1.0,
    )
    base.model = lora["MODEL"]
    patched = base.apply("IPAdapter", image=g.picture("Image prompt"), weight=0.8)
    base.save(patched, steps=6, cfg=1.5, sampler_name="lcm", scheduler="sgm_uniform")
