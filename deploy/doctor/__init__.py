"""`pigeon doctor`: asks every address of the settings what it can do.

    commands   the command; the probes come from the parts, each in its own `doctor.py`

Imports `schemas` only: generator/cli.py names the parts.
"""
