"""The one seam to ComfyUI."""
