"""Builders and fixtures that several tests share; imported as `support.<folder>.<module>`."""
