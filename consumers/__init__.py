"""Kafka -> Postgres: every event exactly once, poison aside, outages waited out; and what feeds the topics by hand.

Imports schemas only; imported by the command line and by tests.

    run       the loop: poll, decode, batch, hand to the writer, settle rebalances, back off, stop
    ownership, assignment, background   the partitions that are ours; the thread beside the loop
    decode    bytes of a record -> a row of its topic, or poison with its reason
    batch     records in order, closed by count, bytes or time; carries the next offset of each partition
    writer    one batch, one transaction: dead letters first, then rows (staging, ingest, erasure, histories), then offsets
    offsets   where each partition goes on, and the epoch that fences its former owner
    outage    which database errors are outages, which are the data's fault
    broker    every Kafka client and every broker quirk; topics
    dlq       dead letters and their limit; deadletters reads, replays and drops them
    partitions  the months of `interactions`: made on demand and ahead, detached by retention
    produce, imports, images   events from files
    metrics, health, probes, stuck, progress  what can be watched
"""
