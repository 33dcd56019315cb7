"""The night: from users' histories to posters in S3 and a manifest that recommenders read.

    commands          `pigeon night` and `pigeon schedule`
    run               one night from plan to announcement
    plan              users with something new, their targets, and each task's frozen input
    frozen_prompt     what a plan freezes of a task; ids and seeds
    images            catalogue images: fetched, decoded, hashed
    image_features    their visual tokens and embeddings, computed once
    generate          drawing of the pending tasks, in stages
    stages            stages that work at the same time, joined by bounded queues
    retry             retries of model calls, and outages of the model server
    select            which candidates are kept, and with which probability they are shown
    compose           the poster around an image: title, sizes, WebP
    rows              the rows of the night's tables, as plain values
    ledger            the night's tables: reads, and writes under the lease
    manifest_rows     which posters are in the manifest, page by page
    manifest_writer   its shards, in constant memory
    manifest_images   whether every image that it names is in the bucket
    manifest_edit     shards without erased users
    publish           the set, and the pointer that readers follow
    taken_back        the condition by which queries leave out what is withdrawn or objected to
    withdraw          withdrawals, lifting them, and rolling a night back
    online_store      export to a store of the Redis protocol
    announce          events of `posters.published.v1`
    report            the night's HTML report
    progress          a bar or lines on stderr
    status            a night in figures
    wording           numbers with their nouns
    erase             erasure of users, and retention of manifests
    schedule          jobs by cron, each due moment once, by one leader

Imports schemas, generator.storage, generator.serving.api, and generator.serving.client inside commands; no torch: the model is
reached through Triton. Imported by generator/cli.py, and frozen_prompt by generator.feedback.
"""
