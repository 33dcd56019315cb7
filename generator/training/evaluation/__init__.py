"""Evaluation of a checkpoint: what it draws for simulated users, measured against known drawings.

- `samples`: what is needed of a world of users and drawings (a protocol; the icon world's is `training.nano.samples`)
- `run`: the whole evaluation, `evaluate(request, samples, folder, progress)`
- `rows`: what is drawn for a sample, and what that is compared with
- `extractors`: pictures -> vectors in which nearness means likeness
- `efficientnet`: the network that judges pictures with ImageNet's weights
- `gallery`: vectors of real drawings, kept in a folder
- `metrics`: similarities and distances of pictures and vectors
- `measure`: every figure of every row and sample
- `bootstrap`: means with 95 % intervals
- `report`: tables for a terminal and a model card, and JSON
- `plots`: the α_r sweep and the contact sheet

Imports `generator.pigeon` and `schemas`. Imported by `generator.training.catalog` and by `generator.training.nano`, whose commands
hold `pigeon evaluate`.
"""
