"""What results are compared with: the paper, `diffusers`, official code, known interfaces."""
