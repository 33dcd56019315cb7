"""What Prometheus is told of nights and of the loop, read from Postgres at each scrape.

A night, a retrain and an erasure are processes that end, so they keep no counters: what they came to is in their rows, and
whoever serves /metrics for long (the scheduler) shows it, whichever process did the work.

    names       every metric of this package, with its unit
    nights      the latest night and the published one
    loop        model versions, canary, click model, pairs
    stores      open erasures and withdrawals, sizes of the database and of the state folder
    collector   reads them all, at most every few seconds

Imports schemas, generator.storage and generator.nightly's figures. Imported inside the commands that serve /metrics.
"""
