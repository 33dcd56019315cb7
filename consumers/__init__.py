"""Kafka -> Postgres: every event once, poison set aside, outages waited out; and files of events.

    commands                     `pigeon consume | topics | dlq | histories | catalog | clicks | recommendations | feedback |
                                 events`
    doctor                       what is asked of Kafka for `pigeon doctor`
    dead_letters                 dead letters listed, replayed and dropped by people
    dead_letter_topics           their topics read: what the index lacks, and the records themselves
    partitions                   months of `interactions`: made on demand and ahead, dropped by retention
    postgres                     connections with the settings' timeouts, and the check for our tables
    outage                       which database errors are outages, which are the data's fault; delays between tries
    metrics                      every Prometheus metric, by name

    loop/ingest                  poll, decode, batch, hand to the writer; follow rebalances, back off, stop
    loop/assignment              the group's decisions, queued for the loop
    loop/ownership               the partitions that are ours: claimed, sought, given up, watched for recreated topics
    loop/log_ends                how long the logs are while nothing is read of them
    loop/background              one job at a time in a thread beside the loop
    loop/summary, progress       a run in numbers, as one line and as a bar
    loop/health, probes          liveness and readiness; the stores' problems
    loop/thread_stacks           all threads' stacks in the log when nothing moves

    write/wrapped                envelopes that other tools put around a record, named
    write/decode                 bytes of a record -> a row of its topic, or poison with its reason
    write/batch                  records in order, closed by count, bytes or time; the next offset of each partition
    write/writer                 one batch, one transaction: dead letters, rows, offsets
    write/staging                COPY of the rows into temporary tables
    write/upsert, histories      set-based SQL from there into the tables, erasure included
    write/rebuild                histories made again from the log, by today's rule
    write/offsets                where each partition goes on, and the epoch that fences its former owner
    write/dead_letter_sender     dead letters written, and the limit of poison
    write/letter_index           a dead letter's row in the index: place, reason, and the users that it names

    files/imports, verdict       files of events checked row by row and sent; whether that was a success
    files/layout, rows           what a file is taken for; its rows, by their true lines
    files/columns                which column is which field, and cells as values
    files/images                 local pictures, uploaded to S3
    files/produce                typed events to their topics

    kafka/clients                every Kafka client, the topics, final errors
    kafka/acknowledged           events handed over one by one, each with a future
    kafka/rights                 what a command needs at the broker
    kafka/quirks                 what brokers and kafka-python get wrong, worked round

`loop` imports `write` and `kafka`; `write` and `files` import `kafka`; none imports the other way (contracts in pyproject.toml).
The whole imports `schemas` only; imported by the command line, `migrations` (partitions) and tests.
"""
