"""The night: plan, generate, select, compose, publish, ledger, report; taking back, the online store; and the scheduler.

Imports `schemas` and `generator.serving` (its contract, and its client inside commands); imported by generator/cli.py only.
No torch here: the model is reached through Triton.
"""
