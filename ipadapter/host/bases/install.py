"""Which base a MODEL is, and how an adapter is put into it."""

from __future__ import annotations

from .unet import install, read_layout

__all__ = ["install", "layout_of"]

layout_of = read_layout
