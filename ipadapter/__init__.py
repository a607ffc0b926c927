"""Image prompts by decoupled cross-attention (IP-Adapter, arXiv 2308.06721).

Host-free core: nothing here imports ComfyUI. `host/` is the one seam to it and `nodes/` holds node
families.
"""
