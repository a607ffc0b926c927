"""Adapter files: what one is, its projector, its keys and values."""
