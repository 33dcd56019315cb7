"""What runs inside Triton's Python backend: numpy, onnxruntime and tokenizers, no torch.

    graph                an ONNX graph as a checked function
    generation           the personalizer's answers for a grid of variants: shared prefill, cache, sampling
    masks                which tokens the mask generator keeps
    task                 one (user, item): all stages in order
    answers              several answers to one prompt, not drawn
    pictures             codes and seeds -> pictures, each alone
    previews             what the picture of some codes will be like
    triton               requests and answers: errors, cancelling, tensors
    component_model      the Triton models that are one ONNX graph each
    engine_protocol      messages to an engine that runs LLaMA
    engine_client        asks it
    personalizer_engine_model   the Triton model `personalizer` where an engine runs LLaMA
    personalizer_model   the Triton model `personalizer`, one version per adapter
    image_scorer_model   the Triton model `image_scorer`
    answers_model        the Triton model `answers`, which calls others
    pictures_model       the Triton model `pictures`, which calls others
    pigeon_model         the Triton model `pigeon`, which calls the others

Works with numpy 1.26 and 2. `pigeon models build` copies these files, with `generator.pigeon`'s numpy-only ones, into each
model's version folder under the same package names; `model.py` there is one of the `*_model` files. They import each other and
`generator.pigeon.{prompt, sampling, ddim, lcm}`, nothing else of the project. Imported by Triton, by generator.serving.export
(graph) and by generator.serving.engine (engine_protocol).
"""
