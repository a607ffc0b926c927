"""Models and their files: tiny, synthetic, damaged, of full size."""
