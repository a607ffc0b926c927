"""What a base model is to an adapter: where it attends to text, how wide, in which order."""
