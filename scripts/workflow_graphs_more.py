"""More graphs for workflows/: special ends. See workflow_graphs.py."""

from __future__ import annotations

from tools.described import graph
from tools.graph import SD15, SDXL, VIT_H, Base, Graph


@graph(
    "One prompt only, by hook",
    """A picture for one prompt instead of the whole MODEL. *IPAdapter
Hook* makes hooks, *Cond Pair Set Props* puts them on the pair of prompts; the sampler gets the
checkpoint's own MODEL. Combine several pairs, each with its own picture, area or time.""",
)
def hook(g: Graph) -> None:
    base = Base.of(g, "a garden in spring, best quality")
    hooks = base.apply("IPAdapterHook", image=g.picture("Image prompt"), weight=0.8)
    pair = g.add(
        "PairConditioningSetProperties",
        positive_NEW=base.positive,
        negative_NEW=base.negative,
        hooks=hooks["HOOKS"],
    )
    base.save(base.checkpoint, positive=pair["positive"], negative=pair["negative"])


@graph(
    "Fade over frames",
    """A fade from picture to picture over the frames of a batch. *IPAdapter Weights* gives every
frame a weight and its pictures; one batch node takes *weights* and *image_1*, the other
*weights_invert* and *image_2*. Add a motion model between loader and adapter for real motion.""",
)
def animation(g: Graph) -> None:
    base = Base.of(g, "a face, best quality")
    both = g.add("ImageBatch", image1=g.picture("From"), image2=g.picture("To"))["IMAGE"]
    weights = g.add(
        "IPAdapterWeights",
        weights="1.0, 0.0",
        timing="ease_in_out",
        frames=8,
        method="shift batches",
        image=both,
    )
    model = base.loader["model"]
    for weight, image in {"weights": "image_1", "weights_invert": "image_2"}.items():
        streams = {"image": weights[image], "weight": weights[weight]}
        patched = base.apply("IPAdapterBatch", image, model=model, **streams)
        model = patched["MODEL"]
    g.nodes[base.latent.node - 1].inputs["batch_size"] = weights["total_frames"]
    g.add("SaveAnimatedWEBP", images=base.decoded(patched), filename_prefix="animation", fps=8.0)


@graph(
    "Layers by hand",
    """Every layer by hand. *layer_weights* is a list of layer: strength, numbered in the order
in which the UNet runs them: for SDXL 3 is the composition, 6 the style; for SD1.5 there are 0 to
15, with the composition in 4 and 5. Layers that are not named rest.""",
)
def layer_weights(g: Graph) -> None:
    base = Base.of(g, "a castle on a hill, best quality", SDXL)
    patched = base.apply(
        "IPAdapterMS", image=g.picture("Image prompt"), weight=1.0, layer_weights="3:0.4, 6:1.2"
    )
    base.save(patched)


@graph(
    "Save an image prompt",
    """Encode once, weigh each picture, mix, and keep the result in a file. *Save Embeds* writes it
into the input folder, where *Load Embeds* finds it (see the template *Load a saved image prompt*).
The file is small and needs neither the pictures nor the encoder.""",
)
def save_embeds(g: Graph) -> None:
    base = Base.of(g, "a portrait, best quality")
    weights = {"First reference": 1.0, "Second reference": 0.6}
    encoded = [
        g.add(
            "IPAdapterEncoder",
            ipadapter=base.loader["ipadapter"],
            image=g.picture(title),
            weight=weight,
        )
        for title, weight in weights.items()
    ]
    mixed = {
        output: g.add(
            "IPAdapterCombineEmbeds",
            title,
            method="average",
            embed1=encoded[0][output],
            embed2=encoded[1][output],
        )["EMBEDS"]
        for output, title in {"pos_embed": "Mix", "neg_embed": "Mix of the negatives"}.items()
    }
    g.add("IPAdapterSaveEmbeds", embeds=mixed["pos_embed"], filename_prefix="my_mix")
    patched = base.apply("IPAdapterEmbeds", weight=0.8, start_at=0.0, **mixed)
    base.save(patched)


@graph(
    "Load a saved image prompt",
    """Uses a picture that the template *Save an image prompt* has kept. Run that one first, then
press R so that the file is listed. An adapter that takes other embeds refuses them and says which
it needs.""",
)
def load_embeds(g: Graph) -> None:
    base = Base.of(g, "a portrait, best quality")
    patched = base.apply(
        "IPAdapterEmbeds",
        pos_embed=g.add("IPAdapterLoadEmbeds", embeds="my_mix_00001_.ipadpt.safetensors")["EMBEDS"],
        weight=0.8,
    )
    base.save(patched)


@graph(
    "Where the picture acts, attention map",
    """Colours over the result show where the reference
acted: *effect* how much it changed a place, *attention* which of several references a place looks
at. *Record Attention* comes last before the sampler.""",
)
def attention_map(g: Graph) -> None:
    base = Base.of(g, "a cat on a chair, best quality")
    patched = base.apply("IPAdapter", image=g.picture("Image prompt"), weight=0.8)
    recorded = g.add("IPAdapterRecordAttention", model=patched["MODEL"])
    image = base.save(recorded)
    g.add("IPAdapterAttentionMap", record=recorded["record"], image=image, opacity=0.6)


@graph(
    "Train an adapter",
    """Trains a new adapter for your checkpoint and keeps it. Two pictures only
show the way: put hundreds, with captions, into a folder of ComfyUI's *input*, and choose it as
*image_folder*. The curve must fall. It takes a GPU, hours and many thousand *steps*.""",
)
def train_and_save(g: Graph) -> None:
    loader = g.add("CheckpointLoaderSimple", ckpt_name=SD15)
    pictures = g.add("ImageBatch", image1=g.picture("First"), image2=g.picture("Second"))["IMAGE"]
    trained = g.add(
        "IPAdapterTrain",
        model=loader["MODEL"],
        clip_vision=g.add("CLIPVisionLoader", clip_name=VIT_H)["CLIP_VISION"],
        vae=loader["VAE"],
        clip=loader["CLIP"],
        images=pictures,
        image_folder="(none)",
        captions="a picture",
        steps=1000,
        warm_start=0,  # one caption for all does not tell the pictures apart
    )
    g.add("IPAdapterSave", ipadapter=trained["IPADAPTER"])
    g.add("SaveImage", "Loss", images=trained["loss_curve"], filename_prefix="loss")


@graph(
    "Doctor, what fits your checkpoint",
    """Run it when something is missing or does not fit. It
lists the files that you have, says which fit this checkpoint, which do not and why, and what to
download from where.""",
)
def doctor(g: Graph) -> None:
    loader = g.add("CheckpointLoaderSimple", ckpt_name=SD15)
    g.add("IPAdapterDoctor", model=loader["MODEL"])
