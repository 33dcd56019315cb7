"""Stage 2, direct preference optimization of Pigeon's LoRA on pairs of answers.

    train       the training, and what an adapter makes of pairs and answers
    loss        its loss, a pure function
    memory      whether a training fits, before anything is loaded
    prompts     pairs as the model sees them
    reference   the champion's log-probabilities, and where they are kept
    grid        β and rate by cross-validation over users

Imports generator.pigeon, generator.training's trainer, processes and logprobs, and schemas. Imported by generator.feedback, lazily.
"""
