"""Training an adapter: recipe, data, state, without a host."""
