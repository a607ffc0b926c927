"""Reference pictures before the image encoder, and what the encoder made of them."""
