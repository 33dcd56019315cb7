"""What goes again: users who are to be erased, and what nobody needs any more.

    commands       `pigeon night forget` and `pigeon night upkeep`
    leading        the lease, the bucket and the tables of one call
    erase          erasure of users from what nights made, also while a night runs
    manifest_edit  sets without erased users
    dead_letters   what waits in dead-letter topics, for the proof
    retention      upkeep as a whole
    batches        deletion in short transactions, or only counted
    manifests      old sets and reports
    replaced       posters, tasks and answers that later nights replaced; skips, runs
    unused         pictures and poster files that no poster has, objects that no row names
    unused_files   deletion of a file under its rows' locks
    kept_rows      feedback, catalogue pictures, plans, the scheduler's moments

What came from Kafka is erased by `consumers`, and kept for as long as `pigeon db upkeep` says. Adapters and snapshots are
deleted by generator/feedback/retention.py. Imports schemas, generator.storage and generator.nightly; imported by
generator/cli.py alone, which brings generator.feedback along.
"""
