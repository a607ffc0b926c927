"""How each kind of base model is read and patched inside ComfyUI."""
