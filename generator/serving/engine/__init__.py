"""The personalizer's LLaMA on vLLM, in a process of its own.

`pigeon models build --engine vllm` writes what it serves.

    answers      which answer each row of vLLM's batch is, and what was drawn for it
    processor    vLLM's interface to our sampler
    weights      the engine's folder: checked weights, prompts as embeddings, adapters in PEFT's layout
    runner       vLLM itself: requests in, answers out
    service      what lies between the socket and vLLM's loop
    server       requests over a socket of this machine
    __main__     `python -m generator.serving.engine FOLDER --socket PATH`

Runs in vLLM's environment, which has torch, numpy and safetensors and nothing else of ours: these files are copied beside the
weights. Imports generator.pigeon.{prompt, sampling} and generator.serving.backends.engine_protocol only; vllm in processor
and runner, when they are called.
"""
