"""Bytes and tensors: reading files safely, telling what they are, writing without a loss."""
