"""The demo model set: a tiny SD1.5-type base, its VAE and an image encoder. See README.md here."""
