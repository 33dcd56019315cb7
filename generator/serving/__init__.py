"""Pigeon behind Triton: export to ONNX, the model repository, its backends, and the client that the night uses.

    api         what the night asks of the served model, as plain types
    client      `TritonPigeon`, that contract over gRPC, and model control
    tensors     the server's answers, checked, and its errors by status
    adapters    a retrained adapter installed beside the one that serves
    repository  the Triton repository: layout, manifest, build, check
    versions    what a checkpoint's parts are known by
    configs     each model's config.pbtxt
    export      checkpoint -> ONNX graphs, each compared with PyTorch
    llama       LLaMA's step as a graph with a key/value cache and LoRA matrices as inputs
    tensorrt    the same graphs compiled ahead of time (extra `[tensorrt]`)
    backends    what runs inside Triton (numpy, onnxruntime, tokenizers); copied into the repository

The nightly batch and the feedback loop may import `api`, `client` and `adapters` (no torch);
`export` and `llama` import torch. Imports `generator.pigeon` and `schemas`.
"""
