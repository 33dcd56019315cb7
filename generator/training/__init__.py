"""Training of Pigeon: datasets, masked reconstruction, DPO, metrics and evaluation.

`generator.cli` and `generator.feedback` import this package, lazily, because it imports torch. The exception is
`generator.datasets`, which is torch-free so that the demo's data can be drawn wherever posters are shown.
"""
