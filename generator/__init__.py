"""The nightly batch, the model, its serving, its training and the feedback loop.

    cli        the `pigeon` command, the one module that knows every part of the project
    datasets   pictures, titles and clicks that the demo and nano's training use; no torch
    pigeon     the network (PIGEON.md beside it)
    serving    the network behind Triton: export, model repository, backends, client
    storage    Postgres, S3 and the lease
    safety     a model that finds unsafe pictures
    nightly    plan, draw, publish, announce; the scheduler
    upkeep     what goes again: erased users, what is past retention
    metrics    what Prometheus is told of nights and of the loop
    worth      what drawn posters are worth over the items' own; for nights' reports and the loop
    feedback   what people did with posters becomes a better model
    web        posters and feedback over HTTP, and the operators' console
    training   stage 1, DPO, evaluation, and nano's recipe

Imports `schemas`; never `consumers`.
"""
