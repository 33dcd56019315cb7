"""Postgres, S3 and the lease, for nights and the feedback loop alike. Imports schemas only."""
