"""Pigeon behind Triton: export to ONNX, the model repository, its backends, and their client.

    commands    `pigeon models build`, `check`, `load`, `push` and `pull`
    api         what night and loop ask of the served model, as plain types; CONTRACT.md has the rules
    client      `TritonPigeon`, that contract over gRPC
    control     what the servers serve; loading and unloading
    pool        several servers: which one is asked, which are left alone
    server      one server: requests and model control
    channel     its gRPC channel, which reconnects soon
    doctor      what is asked of Triton for `pigeon doctor`
    shared_memory  pictures through memory that a server on this host shares
    still_served  whether the weights that answered are those that were asked
    tensors     the server's answers, checked, and its errors by status
    adapters    a retrained adapter installed beside the one that serves
    repository  the Triton repository on disk: its manifest, and whether it fits
    replacement  one repository put in the place of another
    release     a repository with its adapters in S3, under its hash
    pull        a release from S3 into this host's repository, verified
    versions    what a checkpoint's parts are known by
    configs     each model's config.pbtxt
    build       checkpoint -> a complete repository
    export      checkpoint -> ONNX graphs, each compared with PyTorch
    agreement   a network to export, and how far its graph is from PyTorch
    targets     what a repository is built for: the cpu target
    gpu         the gpu target: for NVIDIA's Triton image
    engine_folder  the cpu target with LLaMA on an engine, and what a build writes for it
    tensor_hash  what arrays are known by
    engine      the personalizer's LLaMA on vLLM, in a process of its own
    pipeline    a diffusers pipeline with an IP-Adapter behind the same contract, in the night's process
    backends    what runs inside Triton (numpy, onnxruntime, tokenizers); copied into the repository

Imports generator.pigeon, generator.storage (release, pull) and schemas; torch in export, agreement and pipeline, and in build
when it builds. Imported by generator/cli.py (commands), generator.nightly (api, client, pipeline) and generator.feedback (api,
client, adapters, repository): those modules need no torch, but for pipeline.
"""
