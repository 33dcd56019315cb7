"""The night: plan, generate, select, compose, publish, ledger, report; and the scheduler.

Imports `schemas` and `generator.serving` (its contract, and its client inside commands); imported by generator/cli.py only.
No torch here: the model is reached through Triton.
"""
