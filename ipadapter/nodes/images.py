"""Nodes that prepare reference pictures."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..apply.request import chosen
from ..attention.weight_texts import number, whole_number
from ..pictures.images import CropPosition, Interpolation, prep_image
from ..pictures.noise import NoiseType, noise_image
from . import inputs

FROM_CONTENT = -1
CLIP_SIDE = 224
SIDES = (32, 2048)


class PrepImageForClipVision(io.ComfyNode):
    """Cut a picture square where the user wants it cut."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PrepImageForClipVision",
            display_name="Prep Image For ClipVision",
            category="ipadapter/utils",
            description="Makes a picture square, as the image encoder sees it, and chooses which "
            "part of it stays. Without this node the middle stays.",
            inputs=[
                inputs.image(),
                io.Combo.Input(
                    "interpolation",
                    options=[filter_.value for filter_ in Interpolation],
                    tooltip="How pixels are resized. LANCZOS is the sharpest.",
                ),
                io.Combo.Input(
                    "crop_position",
                    options=[position.value for position in CropPosition],
                    tooltip="Part that stays of a wide or tall picture. pad keeps all of it, on a "
                    "black square.",
                ),
                io.Float.Input(
                    "sharpening",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Brings out detail that shrinking loses. Typical: 0 to 0.3.",
                ),
                io.Int.Input(
                    "size",
                    default=CLIP_SIDE,
                    min=SIDES[0],
                    max=SIDES[1],
                    optional=True,
                    tooltip="Side of the result in pixels: what the encoder takes. 224 for most, "
                    "336 for Kolors.",
                ),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="The square picture.")],
        )

    @classmethod
    def validate_inputs(cls, size: int | None = None) -> bool | str:
        lowest, highest = SIDES
        if size is None or lowest <= size <= highest:
            return True
        said = f"size is {size}: expected {lowest} to {highest}."
        if size in (0, 1):
            said += (
                " A file of October 2023 has on or off for padding in this place: set size to "
                f"{CLIP_SIDE}, and for padding crop_position to pad."
            )
        return said

    @classmethod
    def execute(
        cls,
        image: Tensor,
        interpolation: str,
        crop_position: str,
        sharpening: float,
        size: int = CLIP_SIDE,
    ) -> io.NodeOutput:
        resampling = chosen(Interpolation, interpolation, "interpolation")
        position = chosen(CropPosition, crop_position, "crop_position")
        amount, side = number(sharpening, "sharpening"), whole_number(size, "size")
        return io.NodeOutput(prep_image(image, resampling, position, amount, side))


class IPAdapterNoise(io.ComfyNode):
    """Noise for a negative image, or a vaguer reference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterNoise",
            display_name="IPAdapter Noise",
            category="ipadapter/utils",
            description="Turns a picture into noise, mostly for image_negative: the result then "
            "gets cleaner and richer. The same picture always gives the same noise.",
            inputs=[
                io.Combo.Input(
                    "type",
                    options=[kind.value for kind in NoiseType],
                    tooltip="fade: mixes with noise. dissolve: replaces pixels. gaussian: adds "
                    "grain. shuffle: stretches the picture and turns it upside down.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much noise. 0: none. Typical for image_negative: 0.5 to 1.",
                ),
                io.Int.Input(
                    "blur",
                    default=0,
                    min=0,
                    max=32,
                    tooltip="Softens the noise, in pixels of 224. 0: none.",
                ),
                io.Image.Input(
                    "image_optional",
                    optional=True,
                    tooltip="Picture that the noise is made of. Left open: black.",
                ),
                inputs.seed(FROM_CONTENT, "Chooses the noise. -1: it follows from the picture."),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="The noise, 224 x 224.")],
        )

    @classmethod
    def execute(
        cls,
        type: str,
        strength: float,
        blur: int,
        image_optional: Tensor | None = None,
        seed: int = FROM_CONTENT,
    ) -> io.NodeOutput:
        kind = chosen(NoiseType, type, "type")
        amount, width = number(strength, "strength"), whole_number(blur, "blur")
        given_seed = whole_number(seed, "seed")
        chosen_seed = None if given_seed == FROM_CONTENT else given_seed
        return io.NodeOutput(noise_image(kind, amount, width, image_optional, chosen_seed))


IMAGES: list[type[io.ComfyNode]] = [PrepImageForClipVision, IPAdapterNoise]
