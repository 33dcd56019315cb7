"""Alembic's migrations from empty to head and back, and the check against schemas/tables.py.

Imports schemas only (its command line also calls consumers.partitions); imported by the command line and by tests.
"""
