"""Node schemas by subject; each node is one call."""
