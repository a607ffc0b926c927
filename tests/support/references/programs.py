"""What other programs send: the nodes and inputs that their public sources name, as facts.

Krita's AI Diffusion plugin (ai_diffusion/comfy_workflow.py at 001d1b6) encodes pictures one by one,
joins them, and adds faces; SwarmUI (WorkflowGeneratorSteps.cs) takes a preset, a file, or, with the
packs of 2023, `IPAdapterApply`. What they do not name they fill in from the server's list of nodes,
or leave out: here it is left out.
"""

from __future__ import annotations

from typing import Any

SPAN = {"start_at": 0.0, "end_at": 1.0}
KRITA: dict[str, Any] = {
    "chain": ["apply", "face"],
    **{
        name: (
            "IPAdapterEncoder",
            {
                "image": [image, 0],
                "weight": weight,
                "ipadapter": ["adapter", 0],
                "clip_vision": ["encoder", 0],
            },
        )
        for name, image, weight in (("one", "image", 1.0), ("two", "other", 0.5))
    },
    "joined": (
        "IPAdapterCombineEmbeds",
        {"method": "concat", "embed1": ["one", 0], "embed2": ["two", 0]},
    ),
    "apply": (
        "IPAdapterEmbeds",
        {
            "ipadapter": ["adapter", 0],
            "pos_embed": ["joined", 0],
            "clip_vision": ["encoder", 0],
            **{"weight": 0.8, "weight_type": "linear", "embeds_scaling": "V only", **SPAN},
        },
    ),
    "file": ("IPAdapterModelLoader", {"ipadapter_file": "random_faceid.safetensors"}),
    "analysis": ("IPAdapterInsightFaceLoader", {"provider": "CPU"}),
    "face": (
        "IPAdapterFaceID",
        {
            "ipadapter": ["file", 0],
            "image": ["image", 0],
            "clip_vision": ["encoder", 0],
            "insightface": ["analysis", 0],
            **{"weight": 0.8, "weight_faceidv2": 1.6, "weight_type": "linear", **SPAN},
        },
    ),
}
SWARM_PRESET: dict[str, Any] = {
    "chain": ["apply"],
    "apply": (
        "IPAdapter",
        {
            "model": ["unified", 0],
            "ipadapter": ["unified", 1],
            "image": ["both", 0],
            **{"weight": 1, "weight_type": "standard", **SPAN},
        },
    ),
}
SWARM_FILE: dict[str, Any] = {
    "chain": ["apply"],
    "apply": (
        "IPAdapterAdvanced",
        {
            "ipadapter": ["adapter", 0],
            "image": ["both", 0],
            "clip_vision": ["encoder", 0],
            **{"weight": 1, "weight_type": "ease out", **SPAN},
            **{"combine_embeds": "concat", "embeds_scaling": "V only"},
        },
    ),
}
SWARM_OLD: dict[str, Any] = {
    "chain": ["apply"],
    "apply": (
        "IPAdapterApply",
        {
            "ipadapter": ["adapter", 0],
            "image": ["both", 0],
            "clip_vision": ["encoder", 0],
            **{"weight": 1, "noise": 0, "weight_type": "original"},
        },
    ),
}
PROGRAMS = {
    "Krita": KRITA,
    "SwarmUI, preset": SWARM_PRESET,
    "SwarmUI, file": SWARM_FILE,
    "SwarmUI of 2023": SWARM_OLD,
}
# Where they read what there is to choose from.
LISTS = {"IPAdapterModelLoader": "ipadapter_file", "IPAdapterUnifiedLoader": "preset"}
