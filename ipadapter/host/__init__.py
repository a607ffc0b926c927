"""The seam to ComfyUI: the only package besides the nodes that imports it."""
