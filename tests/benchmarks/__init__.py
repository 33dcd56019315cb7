"""Benchmarks: ratios of things measured in one run on the machine at hand.

`make bench`; no promise in seconds. RESULTS.md has what was measured last.

    table       a measured figure, the table, the machine
    cpu         processor time of servers
    demo_night  the demo's users and a night for them on embedded servers, which several rows share
    published   the published way: a pass per α, a picture per pass, everything again for each
    drawing     processor time per task; pictures per poster, for the demo's users and for ten times as many
    simulated   answers of more users, by the statistics of those who were answered
    recorded    a served model that remembers what it answered
    per_poster  the release before: every poster's files are made for every user
    overhead    processor time that is not the model's, per poster
    plan        planning at scale, and nights with nothing new
    manifest    writing and reading manifests
    console     the console's pages over a million posters against those over ten thousand
    ingest      the ingest path against its own parts and against plain loops
    shared_memory  pictures by shared memory against gRPC
"""
