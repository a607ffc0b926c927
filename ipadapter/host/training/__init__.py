"""Training inside ComfyUI: data, the frozen base, the session of one node."""
