"""Image prompts for Stable Diffusion graphs in ComfyUI: IP-Adapter, decoupled cross-attention."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
