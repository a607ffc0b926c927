"""What the models know: coloured shapes on coloured backgrounds, and what captions say of them."""
