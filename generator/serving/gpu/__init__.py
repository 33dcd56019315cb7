"""The gpu target of `pigeon models build`: a repository for NVIDIA's Triton image.

Nothing of it has run on a GPU.

    target     what the build asks of this target
    graphs     the networks with float16 inside, and how far each may be from PyTorch
    configs    each model's config.pbtxt: TensorRT through ONNX Runtime, batches, warm-up
    profiles   the range of every dimension that an engine is built for
    release    the release of NVIDIA's image that a repository is for, and whether a server is of it
    host       what a GPU host is, what a repository asks of it, and whose engines may be loaded; only the standard library
    tensorrt   the graphs compiled ahead of time, as a check (extra `[tensorrt]`)
    backends   what runs inside that Triton; copied into the repository

Imported by generator.serving (build, commands, control). deploy/triton's image holds host.py alone.
"""
