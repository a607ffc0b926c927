"""What the image encoder sees, as a picture and a line of text on the node in the editor."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..apply.request import Request
from ..pictures.images import as_rgb, blank_outside, crop_warning
from .encode import input_of

MOST = 4  # pictures shown


def queued_by_editor(node: type[io.ComfyNode]) -> bool:
    """Whether somebody looks: the editor sends its workflow along, programs rarely do."""
    info = node.hidden.extra_pnginfo if node.hidden else None
    return bool(info) and "workflow" in info


def request_view(node: type[io.ComfyNode], request: Request) -> dict[str, Any]:
    """`encoder_view` of a request's pictures; empty for adapters that read faces, not pictures."""
    if request.loaded.adapter.spec.face_dim:
        return {}
    pictures = {"image": request.image, "image_composition": request.image_composition}
    return encoder_view(node, request, pictures, request.image_mask)


def encoder_view(
    node: type[io.ComfyNode],
    request: Request,
    pictures: dict[str, Tensor | None],
    mask: Tensor | None = None,
) -> dict[str, Any]:
    """The node's `ui` entry: the squares that the encoder is given, and what they leave out.

    pictures: (images, height, width, channels) by name, those that are not connected as None.
    mask: the part that is read. Empty where nobody looks or nothing is encoded.
    """
    given = {name: as_rgb(one, name) for name, one in pictures.items() if one is not None}
    encoder = request.loaded.clip_vision
    if not given or encoder is None or not queued_by_editor(node):
        return {}
    form = input_of(encoder)
    shown = [
        form.square(blank_outside(picture[:MOST], mask, form.mean), name=name)
        for name, picture in given.items()
    ]
    warnings = [crop_warning(picture, form.fit, name=name) for name, picture in given.items()]
    return _shown(shown, [_caption(given, form.size), *filter(None, warnings)])


def result_view(node: type[io.ComfyNode], pictures: Tensor) -> dict[str, Any]:
    """The node's `ui` entry: its own pictures, (images, height, width, channels)."""
    return {"images": _saved(pictures[:MOST])} if queued_by_editor(node) else {}


def _shown(pictures: list[Tensor], lines: list[str]) -> dict[str, Any]:
    images = [saved for squares in pictures for saved in _saved(squares)]
    return {"images": images, "text": ["\n".join(lines)]}


def _saved(pictures: Tensor) -> list[Any]:
    # Not PreviewImage: it draws its file names from the global random state.
    return ui.ImageSaveHelper.save_images(
        pictures, "image_prompt_view", io.FolderType.temp, cls=None, compress_level=1
    )


def _caption(given: dict[str, Tensor], size: int) -> str:
    total = sum(len(picture) for picture in given.values())
    seen = sum(min(len(picture), MOST) for picture in given.values())
    count = f", {seen} of {total} pictures" if seen < total else ""
    return f"What the encoder sees: {size} x {size} px{count}"
