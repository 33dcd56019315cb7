"""The nightly batch, the model, its serving, its training and the feedback loop. Imports schemas; never consumers.

`cli.py` is the one module that knows every part of the project.
"""
