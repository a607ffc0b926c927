"""The demo models: small as they are stored, wide as ComfyUI loads them."""
