"""What runs inside Triton's Python backend: numpy, onnxruntime and tokenizers, no torch, numpy 1.26 or 2.

`pigeon models build` copies these files, with `generator.pigeon`'s numpy-only ones, into each model's version folder under
the same package names; `model.py` there is one of the `*_model` files. They may import each other and
`generator.pigeon.{prompt, sampling, ddim}`, nothing else of the project.

    graph               an ONNX graph as a checked function
    generation          the personalizer's answer for a grid of variants: shared prefill, cache, sampling
    masks               which tokens the mask generator keeps
    task                one (user, item): all stages in order
    answers             several answers to one prompt, not drawn
    pictures            codes and seeds -> pictures, each alone
    previews            what the picture of some codes will be like
    triton              requests and answers: errors, cancelling, tensors
    component_model, personalizer_model, image_scorer_model, answers_model, pictures_model, pigeon_model    the Triton models
"""
