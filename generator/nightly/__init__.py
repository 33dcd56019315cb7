"""The night: from users' histories to posters in S3 and a manifest that recommenders read.

    commands          `pigeon night` and `pigeon schedule`
    run               one night from plan to announcement
    backfill          nights of several dates
    runs              rows of `night_runs`: cancelled, drawn, taken up again, announced later
    cancelled         notice that the run that is drawn was cancelled; its lease kept
    sessions          what each process drew of a run, stored while it works
    figures           what the run came to, what a night to come will need
    plan              users with something new, their targets, and each task's frozen input
    plan_users        who is as an earlier plan left him, and what the others are planned from, page by page
    plan_clicks       clicks on posters that histories take in, in SQL
    clicked_posters   which entry of a history is a clicked poster: the rule
    plan_items        items as a plan sees them, and which have changed since earlier plans
    plan_tasks        one user's tasks, and why other targets are left out
    plan_rows         a plan's rows, and from when on later plans rely on them
    drawers           who draws for a user: champion or canary
    frozen_prompt     what a plan freezes of a task; ids and seeds
    prompt_texts      prompts and fingerprints as texts, from texts that are made once per item
    images            catalogue images: asked for when they may have changed, known by their hash
    image_cache       their bytes on disk, within a size limit
    image_hosts       which picture hosts are away, waited for once per host
    image_features    their visual tokens and embeddings, computed once
    generate          the pending tasks: answers, a choice among them, pictures, posters; in stages
    in_process        a night whose model is a pipeline in its own process
    drawing           what draws a run: `generate`, or `ray_drawing`
    ray_drawing       a run drawn by workers of a Ray cluster: the driver
    ray_worker        one of its workers
    ray_cluster       connection to a cluster, and its token
    shards            pending tasks cut into ranges of users
    stages            stages that work at the same time; items may come back, or be parked outside
    retry             retries of model calls, and outages of the model server
    jobs              a task on its way, and the rows that come of it
    answers           which answers are asked for, and as what they are stored
    policies          which of them are drawn, and with which probability
    reward_policy     the policy that chooses by a click model
    click_models      the click model that a night chooses by
    pictures          each distinct picture drawn once, whoever asks for it
    picture_batches   pictures of several tasks in one request, where the model draws several at once
    picture_rows      the table `pictures`, and the claim of the one process that draws
    verdicts          stored safety verdicts; what is unsafe is withdrawn
    recheck           stored pictures judged again, by another model or threshold
    select            scores of a picture for a task, and why it is not kept
    compose           the poster around an image: title, sizes, WebP
    typography        titles set in their box, every script by its own font
    compositions      each poster file composed and stored once
    tally             counts that add up over sessions
    rows              the rows of the night's tables, as plain values
    ledger            the night's own tables: reads, and writes under the lease
    manifest_rows     which posters are in the manifest
    manifest_writer   its shards, in constant memory
    manifest_images   whether every image that it names is in the bucket
    publish           manifest, items, and the pointer that readers follow
    taken_back        the condition by which queries leave out what is withdrawn or objected to
    withdraw          withdrawals, lifting them, and rolling a night back
    online_store      export to a store of the Redis protocol
    announce          events of `posters.published.v1`
    doctor            what is asked of this machine for `pigeon doctor`
    report            the night's HTML report (a package)
    progress          a bar or lines on stderr
    status            a night in figures
    event_hints       events that say nothing to a night, in words
    wording           numbers with their nouns
    erasure_fence     what keeps an erased user out while a night writes
    objections        users who object to drawn posters, by an operator's hand
    schedule          jobs by cron, each due moment until it is done, by one leader
    cron              when jobs are due
    moments           the due moments of jobs: done, tried again, given up
    schedule_watch    the scheduler's metrics, health, and the alarm of a night that is not published

Imports schemas, generator.storage, generator.safety, generator.serving.api, and inside commands generator.serving.client or
pipeline; no torch: the model is reached through Triton, or brings it along (models.preset = pipeline). Imported by
generator/cli.py and generator.upkeep, and frozen_prompt by generator.feedback.
"""
