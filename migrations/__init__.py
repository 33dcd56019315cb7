"""Alembic: the database's way from empty to head and back, and the check that it matches schemas/tables.py.

Imports schemas only (its command line also calls consumers.partitions); imported by the command line and by tests.
"""
