"""The loop: from feedback on posters to preference pairs, an adapter, a gate and a promotion.

    commands      `pigeon retrain` and `pigeon models ...`
    retrain       the steps of one retraining, in an order that a rerun continues
    ports         what the steps share, and protocols of training and serving
    backends      those protocols on generator.training and generator.serving
    pairs         preference pairs from logged feedback; the estimator is in its docstring
    queries       the SQL of pairs
    split         pairs that train, pairs that judge, and checks that none does both
    snapshot      immutable sets of pairs in S3, and their erasure
    gate          may a challenger serve: a pure function of metrics and thresholds
    gate_metrics  those metrics
    registry      model versions, their states and the history of both
    rollout       promotion, canary, rollback, adoption, synchronisation
    artifacts     adapters as files in S3
    clicks        the click model: `pigeon loop ...`

Imports schemas, generator.storage, generator.serving (api, client, adapters, repository: no torch) and of generator.nightly
only frozen_prompt; generator.training is imported inside functions when a training starts. Imported by generator/cli.py alone.
"""
