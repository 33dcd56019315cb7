"""Events from files: read, checked row by row, and sent to their topics.

Imports `kafka`; imported by `consumers.commands` and tests.
"""
