"""What an image prompt costs: see run.py."""
