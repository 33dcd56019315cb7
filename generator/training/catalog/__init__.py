"""A team's own catalogue and clicks: the data set, stage 1 on it, its evaluation.

    dataset        the data set itself; no torch but for the codes of its pictures
    aligner        stage 1 of any checkpoint on a data set, with validation and early stop
    whole          a checkpoint with a trained adapter in the place of its own
    held_out       held-out users and their next item: tasks, and how likely its codes are
    evaluation     the paper's protocol on a data set
    report         its tables, JSON and contact sheet
    folders        CLIP and DINOv2 as extractors, from folders
    redraw         pictures redrawn from their codes, beside the originals
    commands       `pigeon dataset`, and what `pigeon train align` and `pigeon evaluate --dataset` do
    progress       bars and lines of long commands

Imports `generator.pigeon`, `generator.serving.repository` (where a checkpoint is), `generator.storage`, `training.evaluation`,
`training.reconstruction`, `training.trainer` and `schemas`. Imported by `training.nano`, whose commands hold `pigeon train` and
`pigeon evaluate`, and by `generator.cli`.
"""
