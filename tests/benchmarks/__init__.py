"""Benchmarks: ratios of things measured in one run on the machine at hand.

`make bench`; no promise in seconds.
"""
