"""`pigeon doctor`: asks every address of the settings what it can do, and says what is wrong and how to mend it.

    commands   the command; the probes come from the parts, each in its own `doctor.py`

Imports `schemas` only: generator/cli.py names the parts.
"""
