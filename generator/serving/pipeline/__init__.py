"""A diffusers pipeline with an IP-Adapter behind the night's contract (`api.ServedPigeon`).

    image_prompt    an image prompt as codes
    answers         a task's answers: image prompts between its reference and its history
    folders         what the settings name, checked, and what it is known by
    loading         weights from folders, refused where they do not fit
    networks        encoder, scorer and diffusion: one picture or text at a time
    model           `ServedPipeline`, the contract

Runs in the process of the night, on `compute.device`; nothing is downloaded. CONTRACT.md says what it promises. Imports
generator.pigeon (sampling, placement), numpy, and torch, transformers and diffusers in loading and networks. Imported by
generator.nightly, for models.preset = pipeline, and by serving.doctor.
"""
