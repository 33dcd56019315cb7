"""Described with its first module."""
