"""The night: from users' histories to posters in S3 and a manifest that recommenders read.

    commands        `pigeon night` and `pigeon schedule`
    run             one night from plan to announcement
    backfill        nights of several dates
    runs            rows of `night_runs`: cancelled, drawn, taken up again, announced later
    cancelled       notice that the run that is drawn was cancelled; its lease kept
    figures         what a process drew, what the run came to, what a night to come will need
    plan            users with something new, their targets, and each task's frozen input
    frozen_prompt   what a plan freezes of a task; ids and seeds
    images          catalogue images: fetched, decoded, hashed
    image_features  their visual tokens and embeddings, computed once
    generate        drawing of the pending tasks, in stages
    stages          stages that work at the same time, joined by bounded queues
    retry           retries of model calls, and outages of the model server
    select          which candidates are kept, and with which probability they are shown
    compose         the poster around an image: title, sizes, WebP
    rows            the rows of the night's tables, as plain values
    ledger          the night's tables: reads, and writes under the lease
    manifest_rows   which posters are in the manifest
    publish         manifest, items, and the pointer that readers follow
    announce        events of `posters.published.v1`
    report          the night's HTML report
    progress        a bar or lines on stderr
    status          a night in figures
    wording         numbers with their nouns
    erase           erasure of users, and retention of manifests
    schedule        jobs by cron, each due moment until it is done, by one leader
    cron            when jobs are due
    moments         the due moments of jobs: done, tried again, given up
    schedule_watch  the scheduler's metrics, health, and the alarm of a night that is not published

Imports schemas, generator.storage, generator.serving.api, and generator.serving.client inside commands; no torch: the model is
reached through Triton. Imported by generator/cli.py, and frozen_prompt by generator.feedback.
"""
