"""Nodes for adapters that read faces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..adapters.families import FaceVersion
from ..attention.weight_texts import number
from ..host.apply import run
from ..host.encode import face_pictures, read_faces, require_picture
from ..host.faces import load_face_analysis
from ..host.loaders import load_face_preset
from ..host.preview import encoder_view, request_view
from ..library.presets import FACEID_PRESETS
from ..pictures.faces import PACKS, PROVIDERS, MissingFace
from . import inputs
from .base import ApplyNode
from .loaders import loader_outputs, loader_result, preset_input

CATEGORY = "ipadapter/faceid"


class IPAdapterInsightFaceLoader(io.ComfyNode):
    """Face analysis."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterInsightFaceLoader",
            display_name="IPAdapter InsightFace Loader",
            category="ipadapter/loaders",
            description="Loads InsightFace, which finds and recognises faces. Needs the "
            "insightface package.",
            inputs=[
                provider(("CPU", "CUDA", "ROCM")),
                io.Combo.Input(
                    "model_name",
                    options=list(PACKS),
                    tooltip="buffalo_l for all FaceID adapters, antelopev2 for Kolors. In "
                    "models/insightface/models.",
                ),
            ],
            outputs=[inputs.InsightFaceWire.Output(display_name="INSIGHTFACE")],
        )

    @classmethod
    def execute(cls, provider: str, model_name: str) -> io.NodeOutput:
        inputs.check_choice(model_name, tuple(PACKS), "model_name")
        return io.NodeOutput(load_face_analysis(model_name, provider))


def provider(options: tuple[str, ...]) -> io.Input:
    return io.Combo.Input(
        "provider",
        options=list(options),
        tooltip="Where face analysis runs. CPU is fine: it takes moments.",
    )


class IPAdapterUnifiedLoaderFaceID(io.ComfyNode):
    """Adapter, LoRA, encoder and face analysis by preset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterUnifiedLoaderFaceID",
            display_name="IPAdapter Unified Loader FaceID",
            category=CATEGORY,
            description="Finds a FaceID adapter, its LoRA and encoder, and loads the face "
            "analysis.",
            inputs=[
                inputs.plain_model(),
                preset_input(FACEID_PRESETS),
                io.Float.Input(
                    "lora_strength",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Strength of the LoRA that belongs to the adapter. Typical: 0.5 to "
                    "0.7.",
                ),
                provider(tuple(PROVIDERS)),
                inputs.ipadapter(optional=True),
            ],
            outputs=loader_outputs("MODEL"),
        )

    @classmethod
    def execute(
        cls, model: Any, preset: str, lora_strength: float, provider: str, **_chained: Any
    ) -> io.NodeOutput:
        strength = number(lora_strength, "lora_strength")
        return loader_result(load_face_preset(model, preset, strength, provider))


class IPAdapterFaceID(ApplyNode):
    """A face as a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._face(
            "IPAdapterFaceID",
            "IPAdapter FaceID",
            "Gives a person's face to the picture. Takes the largest face of each reference.",
        )

    @classmethod
    def _face(cls, node_id: str, name: str, description: str, *extra: io.Input) -> io.Schema:
        schema = cls.schema(
            node_id,
            name,
            description,
            inputs.image(),
            inputs.weight(high=3.0),
            inputs.weight_faceidv2(),
            *extra,
            inputs.weight_type(),
            inputs.combine_embeds(),
            *inputs.start_end(),
            inputs.embeds_scaling(),
            *inputs.negative_mask_vision(),
            inputs.insightface(),
            *_choices(),
            category=CATEGORY,
        )
        schema.outputs = [
            inputs.patched_model(),
            io.Image.Output(
                "face_image", display_name="face_image", tooltip="The faces that were found."
            ),
        ]
        return schema

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        request = cls.request(**given)
        image = require_picture(request.image)
        if not request.loaded.adapter.spec.face_dim:
            pictures = face_pictures(request.loaded, image)
            return io.NodeOutput(run(request), pictures, ui=request_view(cls, request))
        embeds, faces = read_faces(request.reading, image)
        view = {} if embeds.features is None else encoder_view(cls, request, {"faces": faces})
        return io.NodeOutput(run(replace(request, pos_embed=embeds)), faces, ui=view)


def _choices() -> list[io.Input]:
    return [
        io.Combo.Input(
            "face_version",
            options=[version.value for version in FaceVersion],
            default=FaceVersion.AUTO.value,
            optional=True,
            tooltip="FaceID Plus v1 and v2 files look alike inside. auto goes by the file's name.",
        ),
        io.Combo.Input(
            "missing_face",
            options=[policy.value for policy in MissingFace],
            default=MissingFace.ERROR.value,
            optional=True,
            tooltip="What to do with a picture without a face: stop, leave it out, or use the one "
            "before.",
        ),
    ]


class IPAAdapterFaceIDBatch(IPAdapterFaceID):
    """A face per latent. The id's spelling is the de facto one."""

    PER_ITEM = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._face(
            "IPAAdapterFaceIDBatch",
            "IPAdapter FaceID Batch",
            "IPAdapter FaceID with a face for every latent of a batch.",
        )


class IPAdapterFaceIDKolors(IPAdapterFaceID):
    """A face as a prompt, for Kolors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._face(
            "IPAdapterFaceIDKolors",
            "IPAdapter FaceID Kolors",
            "IPAdapter FaceID for Kolors checkpoints. Needs the antelopev2 face analysis.",
            io.Float.Input(
                "weight_kolors",
                default=1.0,
                min=-1.0,
                max=5.0,
                step=0.05,
                tooltip="Strength of Kolors' own projection of the face. Leave at 1.",
            ),
        )


FACES: list[type[io.ComfyNode]] = [
    IPAdapterInsightFaceLoader,
    IPAdapterUnifiedLoaderFaceID,
    IPAdapterFaceID,
    IPAdapterFaceIDKolors,
    IPAAdapterFaceIDBatch,
]
