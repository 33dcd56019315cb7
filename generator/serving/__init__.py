"""Pigeon behind Triton: export to ONNX, the model repository, its backends, and the client that the night uses.

The nightly batch and the feedback loop may import `api` and `client` (no torch); only `export` and what it needs import torch.
"""
