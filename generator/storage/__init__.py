"""Postgres, S3 and the lease, for nights and the feedback loop alike.

    postgres  engines with the settings' timeouts, and the driver's errors as ours
    objects   one bucket: content-addressed puts, conditional replacement, errors as ours
    lease     one leader per name, with a token that fences late writes
    showings  what a showing of a poster is, in SQL
    doctor    what is asked of S3 for `pigeon doctor`
    outages   outages of Postgres and S3, waited out

Imports `schemas` only; imported by the rooms of generator/ that keep rows or files, and by tests.
"""
