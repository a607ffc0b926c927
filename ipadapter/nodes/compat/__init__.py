"""Callers of older packs: their Python calls, their renamed nodes, the words people search for."""
