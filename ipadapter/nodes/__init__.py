"""Node families that do not fit nodes.py: schemas and one call each."""
