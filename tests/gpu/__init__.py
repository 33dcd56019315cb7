"""What the first hour with a CUDA machine measures: `make gpu`, or `python -m tests.gpu`.

    __main__   options, and the parts one after the other, each a process with a limit of its own
    rig        the device, what is written, seconds and memory
    models     nano, and models of published size made on the device from a seed
    batches    prompts, pairs and tasks of random codes
    parity     every module against the CPU, and the golden cases
    training   steps of stage 1 and of DPO
    drawing    a night's task by its parts
    budget     seconds of a task on several devices, computed from operations and bytes
    compiled   torch.compile, ONNX Runtime and TensorRT against eager

Needs torch 2.11, transformers, diffusers, peft, safetensors, pydantic and onnxruntime or newer, and this checkout: no server, no
network. What a fresh image of torch lacks are small wheels: diffusers, peft, pydantic (with pydantic-core, annotated-types,
typing-inspection).
"""
