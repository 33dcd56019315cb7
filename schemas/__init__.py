"""What crosses a boundary: Kafka events, Postgres tables, the S3 manifest, preference pairs, settings, errors.

Every other part may import this one; it imports none of them.
"""
