"""Nodes that train an adapter and save one."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from torch import Tensor

from ..adapters.families import TRAINABLE, Family
from ..apply.request import chosen
from ..apply.wire import LoadedAdapter, loaded_adapter
from ..attention.weight_texts import number, whole_number
from ..files.paths import inside
from ..host.training.data import NO_FOLDER, TrainingInputs, folder_names, input_folder, pictures_of
from ..host.training.frozen import Precision
from ..host.training.session import Folder, Recipe, save_adapter, save_roots, train_adapter
from ..host.training.stored import store
from ..training.flow import Spread
from ..training.recipe import TrainSettings
from ..training.weighting import Weighting
from . import inputs


class Stored(str, Enum):
    """Precision of a saved file."""

    FP16 = "fp16"
    FP32 = "fp32"


_DTYPES = {Stored.FP16: torch.float16, Stored.FP32: torch.float32}
_RECIPE = TrainSettings()


def _drop(name: str, what: str) -> io.Input:
    return io.Float.Input(
        name,
        default=getattr(_RECIPE, name),
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip=f"How often {what} while training, so that guidance works. The paper's value: "
        "0.05.",
    )


def _count(name: str, most: int, tooltip: str) -> io.Input:
    return io.Int.Input(name, default=getattr(_RECIPE, name), min=1, max=most, tooltip=tooltip)


def _adapter_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "family",
            options=[family.value for family in TRAINABLE],
            tooltip="standard: a few tokens of the whole picture. Plus: more tokens, more detail.",
        ),
        io.Int.Input(
            "num_tokens",
            default=0,
            min=0,
            max=64,
            tooltip="Image tokens per picture. 0: the usual number, 4 for standard and 16 for "
            "Plus. A standard adapter with another number is not read by diffusers.",
        ),
    ]


def _length_inputs() -> list[io.Input]:
    return [
        _count(
            "steps", 10_000_000, "Training steps in all. Steps already taken by resume_from count."
        ),
        _count("batch_size", 1024, "Pictures per pass. Lower it when memory runs out."),
        _count(
            "accumulation", 1024, "Passes per step: acts like a larger batch without its memory."
        ),
    ]


def _recipe_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "learning_rate",
            default=_RECIPE.learning_rate,
            min=1e-7,
            max=1.0,
            step=1e-7,
            tooltip="How far one step goes. The paper's value: 0.0001.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            tooltip="The same seed, pictures and settings give the same adapter.",
        ),
        _drop("drop_image", "only the image is left out"),
        _drop("drop_text", "only the text is left out"),
        _drop("drop_both", "image and text are left out"),
        io.Combo.Input(
            "precision",
            options=[precision.value for precision in Precision],
            tooltip="What the base computes in. The adapter's weights are always fp32. bf16 needs "
            "less memory.",
        ),
    ]


def _picture_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "image_folder",
            options=folder_names(),
            tooltip="A folder in ComfyUI's input with pictures, and a .txt caption of the same "
            "name for each. Not used if images are connected.",
        ),
        io.Int.Input(
            "resolution",
            default=512,
            min=64,
            max=2048,
            step=64,
            tooltip="Side of the square that is trained on, in pixels: pictures are cut to their "
            "middle square and resized. Not used with latent.",
        ),
        io.Boolean.Input(
            "skip_unreadable",
            default=False,
            tooltip="Leave out pictures of the folder that cannot be read, instead of stopping.",
        ),
        io.String.Input(
            "captions",
            default="",
            multiline=True,
            tooltip="One line per picture in the same order, or one line for all. Empty: the "
            "folder's .txt files.",
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    def tip(text: str) -> dict:
        return {"optional": True, "tooltip": text}

    return [
        io.Image.Input("images", **tip("Pictures to train on, instead of a folder.")),
        io.Vae.Input("vae", **tip("The checkpoint's VAE. Not needed with latent.")),
        io.Latent.Input("latent", **tip("The pictures already encoded, in the same order.")),
        io.Clip.Input("clip", **tip("Reads the captions. Not needed with conditioning.")),
        io.Conditioning.Input(
            "conditioning",
            **tip("Encoded captions: one per picture in the same order, or one for all."),
        ),
        io.Conditioning.Input(
            "empty_conditioning",
            **tip("What stands for a dropped caption. Left open: the empty prompt, or zeros."),
        ),
        inputs.IPAdapterWire.Input(
            "resume_from",
            **tip("An adapter whose training goes on. Family and tokens are then its own."),
        ),
    ]


def _later_inputs() -> list[io.Input]:
    """Inputs that came after the first version: last, so that older files keep their order."""
    return [
        io.Int.Input(
            "warm_start",
            default=500,
            min=0,
            max=1_000_000,
            optional=True,
            tooltip="Steps before the training in which every layer learns from the picture what "
            "its caption would tell it. Quick, and it saves many steps where captions describe "
            "the pictures. 0: none. Not used when resume_from has trained already.",
        ),
        io.Combo.Input(
            "loss_weighting",
            options=[weighting.value for weighting in Weighting],
            optional=True,
            tooltip="What counts. plain: the paper's, every noise level alike. min-SNR: the last, "
            "fine steps less. picture: layout and shapes more; for few pictures and short "
            "trainings.",
        ),
        io.Boolean.Input(
            "keep_encoded",
            default=True,
            optional=True,
            tooltip="Keep what the encoders make of pictures and captions on disk, in the folder "
            "ipadapter_encoded of ComfyUI's output: a second run begins at once, and large sets "
            "need no memory. Not used with latent or conditioning.",
        ),
        *_watching_inputs(),
    ]


def _watching_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "held_out",
            default=0.05,
            min=0.0,
            max=0.5,
            step=0.01,
            optional=True,
            tooltip="Share of the pictures that are not trained on. The green line of loss_curve "
            "tells how the adapter does on them: where it rises, training has gone on too long.",
        ),
        io.Float.Input(
            "average",
            default=0.0,
            min=0.0,
            max=0.99999,
            step=0.00001,
            optional=True,
            tooltip="The result is a running mean of the weights, which is steadier: usually "
            "0.999, 0.9999 for more than 10 000 steps. 0: the last weights.",
        ),
        io.Boolean.Input(
            "checkpointing",
            default=False,
            optional=True,
            tooltip="Compute parts of the base twice instead of keeping them: a step takes a "
            "third longer and needs a fraction of the memory. The result is the same.",
        ),
        io.Combo.Input(
            "flow_times",
            options=[spread.value for spread in Spread],
            optional=True,
            tooltip="How often each noise level is trained on, for bases that learn a flow (Flux, "
            "SD3.5, Cosmos). logit-normal: mostly the middle, as these bases were trained. "
            "uniform: all alike. The base's own shift is applied to both.",
        ),
    ]


def _settings(given: Mapping[str, Any], loss_weighting: str) -> TrainSettings:
    plain: dict[str, Any] = {
        name: (whole_number if isinstance(getattr(_RECIPE, name), int) else number)(value, name)
        for name, value in given.items()
    }
    return TrainSettings(**plain, weighting=chosen(Weighting, loss_weighting, "loss_weighting"))


def _recipe(
    family: str,
    num_tokens: int,
    precision: str,
    checkpointing: bool,
    flow_times: str,
    settings: TrainSettings,
) -> Recipe:
    return Recipe(
        chosen(Family, family, "family"),
        whole_number(num_tokens, "num_tokens"),
        chosen(Precision, precision, "precision"),
        checkpointing,
        chosen(Spread, flow_times, "flow_times"),
        settings,
    )


class IPAdapterTrain(io.ComfyNode):
    """Train an adapter on a frozen checkpoint."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterTrain",
            display_name="IPAdapter Train",
            category="ipadapter/training",
            description="Trains a new adapter for this MODEL and this image encoder. Interrupting "
            "keeps what is trained so far.",
            inputs=[
                inputs.model(),
                io.ClipVision.Input("clip_vision", tooltip="The image encoder to train for."),
                *_adapter_inputs(),
                *_length_inputs(),
                *_recipe_inputs(),
                *_picture_inputs(),
                *_optional_inputs(),
                *_later_inputs(),
            ],
            outputs=[
                inputs.IPAdapterWire.Output(display_name="IPADAPTER"),
                io.Image.Output(display_name="loss_curve"),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, image_folder: str, images: Tensor | None = None, **_others: Any
    ) -> object:
        if images is not None or image_folder == NO_FOLDER:
            return image_folder
        files = [(path, path.stat()) for path in sorted(input_folder(image_folder).iterdir())]
        return [(path.name, stat.st_size, stat.st_mtime_ns) for path, stat in files]

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip_vision: Any,
        family: str,
        num_tokens: int,
        precision: str,
        image_folder: str,
        resolution: int,
        skip_unreadable: bool,
        captions: str,
        images: Tensor | None = None,
        vae: Any = None,
        latent: Mapping[str, Any] | None = None,
        clip: Any = None,
        conditioning: Any = None,
        empty_conditioning: Any = None,
        resume_from: Any = None,
        loss_weighting: str = Weighting.PLAIN.value,
        keep_encoded: bool = False,
        checkpointing: bool = False,
        flow_times: str = Spread.LOGIT_NORMAL.value,
        **settings: Any,
    ) -> io.NodeOutput:
        wanted = family, num_tokens, precision, checkpointing, flow_times
        recipe = _recipe(*wanted, _settings(settings, loss_weighting))
        kept = store() if keep_encoded else None
        pictures = pictures_of(images, image_folder, captions, skip_unreadable, kept)
        texts = (clip, conditioning, empty_conditioning)
        side = whole_number(resolution, "resolution")
        sources = TrainingInputs(pictures, side, latent, vae, *texts, kept)
        resume = None if resume_from is None else loaded_adapter(resume_from).adapter
        training = train_adapter(model, clip_vision, sources, recipe, resume)
        curve = training.curve()
        return io.NodeOutput(
            LoadedAdapter(training.adapter, clip_vision), curve, ui=ui.PreviewImage(curve, cls=cls)
        )


class IPAdapterSave(io.ComfyNode):
    """Write an adapter file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterSave",
            display_name="IPAdapter Save",
            category="ipadapter/training",
            description="Writes an adapter as a safetensors file that IP-Adapter loaders "
            "everywhere read. Never overwrites a file.",
            inputs=[
                inputs.ipadapter(),
                io.String.Input(
                    "filename_prefix",
                    default="ip-adapter-trained",
                    tooltip="Name of the file; a number is added. Folders with / are allowed.",
                ),
                io.Combo.Input(
                    "folder",
                    options=[folder.value for folder in Folder],
                    tooltip="models/ipadapter: the loaders list it. output: beside your pictures.",
                ),
                io.Combo.Input(
                    "precision",
                    options=[stored.value for stored in Stored],
                    tooltip="fp16 is half as large and what loaders expect. fp32 is exact.",
                ),
                io.Boolean.Input(
                    "with_training_state",
                    default=False,
                    tooltip="Also write a .training file, four times as large, from which "
                    "IPAdapter Train goes on as if it had never stopped.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        ipadapter: Any,
        filename_prefix: str,
        folder: str,
        precision: str,
        with_training_state: bool,
    ) -> io.NodeOutput:
        root = save_roots()[chosen(Folder, folder, "folder")].resolve()
        dtype = _DTYPES[chosen(Stored, precision, "precision")]
        adapter = loaded_adapter(ipadapter).adapter
        stem = inside(root, filename_prefix)
        saved = save_adapter(adapter, stem, dtype, with_training_state)
        texts = [saved.path.relative_to(root).as_posix(), saved.note]
        return io.NodeOutput(ui={"text": [text for text in texts if text]})


TRAINING: list[type[io.ComfyNode]] = [IPAdapterTrain, IPAdapterSave]
