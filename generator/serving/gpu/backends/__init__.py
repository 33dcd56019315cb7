"""What runs inside the Triton of a GPU host, beside `generator.serving.backends`.

    rows                 how many rows of each batched model are one call
    calls                requests to the other models: columns, parts, answers on the CPU
    step                 LLaMA's step as a model of the server
    personalizer_model   the Triton model `personalizer`
    scorer_model         the Triton model `image_scorer`

numpy and tokenizers; onnxruntime is imported for its types only. Imported by Triton, and by generator.serving.gpu (rows).
"""
