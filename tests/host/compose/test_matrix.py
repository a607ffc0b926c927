"""An image prompt beside everything else that changes a MODEL: the result is
always the reference's."""

from __future__ import annotations

from typing import Any

import pytest
from support.hosts.compose import (
    SKIPPED,
    Pack,
    Prompt,
    Scene,
    conditioning,
    difference,
    sample,
    text,
    with_reference,
)
from support.hosts.neighbours import (
    Change,
    area_conds,
    attention_couple,
    context_windows,
    control_net,
    dual_cfg,
    foreign_add,
    foreign_chain,
    foreign_function,
    lora,
    mask_conds,
    node,
    perp_neg_guider,
    tiled,
)

TOLERANCE = 1e-5


def together(*changes: Change) -> Change:
    def change(host: Any, scene: Scene) -> Scene:
        for one in changes:
            scene = one(host, scene)
        return scene

    return change


def cfg_1(host: Any, scene: Scene) -> Scene:
    return scene.but(cfg=1.0)


def batch_4(host: Any, scene: Scene) -> Scene:
    return scene.but(batch=4)


def wide(host: Any, scene: Scene) -> Scene:
    return scene.but(height=8, width=24)


MODEL_CHANGES: dict[str, Change] = {
    "LoRA": lora,
    "FreeU": node("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "ToMe": node("TomePatchModel", ratio=0.3),
    "HyperTile": node("HyperTile", tile_size=32, swap_size=2, max_depth=0, scale_depth=False),
    "PAG": node("PerturbedAttentionGuidance", scale=3.0),
    "SAG": node("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "SLG": node("SkipLayerGuidanceDiT", **SKIPPED),
    "PerpNeg": node("PerpNeg", empty_conditioning=conditioning(text(6)), neg_scale=1.0),
    "RescaleCFG": node("RescaleCFG", multiplier=0.7),
    "DeepShrink": node(
        "PatchModelAddDownscale",
        block_number=3,
        downscale_factor=2.0,
        start_percent=0.0,
        end_percent=1.0,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    ),
    "context windows": context_windows,
    "tiles": tiled,
    "tiles, batch 3": together(tiled, lambda host, scene: scene.but(batch=3)),
    "foreign function": foreign_function,
    "foreign function, full keys": lambda host, scene: foreign_function(host, scene, (0,)),
    "foreign chain": foreign_chain,
    "foreign add": foreign_add,
    "attention couple": attention_couple,
    "attention couple, batch 2": together(attention_couple, lambda _, s: s.but(batch=2)),
}
SCENE_CHANGES: dict[str, Change] = {
    "nothing": lambda host, scene: scene,
    "ControlNet": control_net,
    "DualCFG": dual_cfg,
    "PerpNegGuider": perp_neg_guider,
    "area conds": area_conds,
    "mask conds": mask_conds,
    "CFG 1": cfg_1,
    "CFG 1, area conds": together(area_conds, cfg_1),
    "batch 4": batch_4,
    "batch 4, area conds": together(area_conds, batch_4),
    "wide": wide,
}


@pytest.mark.parametrize("order", ["adapter first", "adapter last"])
@pytest.mark.parametrize("name", MODEL_CHANGES)
def test_beside_another_model_patch(
    host: Any, scene: Scene, pack: Pack, name: str, order: Any
) -> None:
    change, prompt = MODEL_CHANGES[name], Prompt()
    other = change(host, scene)
    if order == "adapter first":
        patched = change(host, scene.but(model=pack.apply(scene.model, prompt))).model
    else:
        patched = pack.apply(other.model, prompt)
    assert difference(sample(other, patched), with_reference(other, prompt)) < TOLERANCE


@pytest.mark.parametrize("name", SCENE_CHANGES)
def test_beside_other_conditioning(host: Any, scene: Scene, pack: Pack, name: str) -> None:
    scene, prompt = SCENE_CHANGES[name](host, scene), Prompt()
    expected = with_reference(scene, prompt)
    assert difference(sample(scene, pack.apply(scene.model, prompt)), expected) < TOLERANCE
    assert difference(sample(scene), expected) > 100 * TOLERANCE
