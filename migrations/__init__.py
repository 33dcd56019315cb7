"""Alembic's migrations from empty to head and back, and the check against schemas/tables/.

    commands   `pigeon db`
    database   upgrade, downgrade and drift check, as functions
    doctor     what is asked of Postgres for `pigeon doctor`
    env        what Alembic runs for every command
    versions   one file a revision

Imports schemas only (its command line also calls consumers.partitions); imported by the command line and by tests.
"""
