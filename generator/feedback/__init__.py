"""The loop: from feedback on posters to preference pairs, an adapter, a gate and a promotion.

    commands         `pigeon retrain` and `pigeon models ...`
    retrain          the steps of one retraining, in an order that a rerun continues
    ports            what the steps share, and protocols of training and serving
    backends         those protocols on generator.training and generator.serving
    pairs            preference pairs from logged feedback; the estimator is in its docstring
    reward_pairs     pairs over all stored answers of a task, by a click model
    dated_pair       a pair with the time of its evidence
    queries          the SQL of pairs, showings and answered tasks
    split            pairs that train, pairs that judge, and checks that none does both
    outlook          after how many days there will be enough to learn from
    snapshot         immutable sets of pairs in S3
    erasure          what erased users leave in snapshots and adapters
    gate             may a challenger serve: a pure function of metrics and thresholds
    gate_metrics     those metrics, measured
    intervals        intervals over users by the bootstrap
    diversity        how much answers differ between users and within a task
    off_policy       what a challenger's choices would have been worth: SNIPS, doubly robust
    off_policy_log   the log that this is read from
    registry         model versions, their states and the history of both
    rollout          promotion, canary, rollback, override, adoption, synchronisation, unloading
    canary           a running canary's plan, looks and end
    canary_test      the canary's test: by user, valid at any look
    canary_clicks    the users' showings and clicks that it takes
    webhook          tells an address of promotions and withdrawals
    artifacts        adapters as files in S3
    retention        adapters and snapshots that go again
    clicks           the click model: `pigeon loop ...`
    simulation       the loop on users whose taste is known: `pigeon simulate`

Imports schemas, generator.storage, generator.worth, generator.serving (api, client, adapters, repository: no torch) and of
generator.nightly only frozen_prompt, and in simulation its policies; generator.training and generator.pigeon are imported inside
functions when a training starts. Imported by generator/cli.py, generator.web, and retention by generator.upkeep.
"""
