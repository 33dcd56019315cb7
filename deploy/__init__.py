"""Placeholder until the part lands in its own commit."""
