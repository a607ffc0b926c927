"""The model folders: what lies there, what a preset needs, what is missing."""
