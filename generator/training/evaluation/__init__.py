"""Evaluation of a checkpoint, on simulated users and known drawings, or on a data set's held-out users.

- `samples`: what is needed of a world of users and drawings (a protocol; the icon world's is `training.nano.samples`)
- `run`: the whole evaluation, `evaluate(request, samples, folder, progress)`
- `rows`: what is drawn for a sample, and what that is compared with
- `extractors`: pictures -> vectors in which nearness means likeness
- `gallery`: vectors of real drawings, kept in a folder
- `metrics`: similarities and distances of pictures and vectors
- `measure`: every figure of every row and sample
- `bootstrap`: means with 95 % intervals
- `report`: tables for a terminal and a model card, and JSON
- `held_out`: held-out users of a data set, and how likely their next item's codes are
- `catalog`: the paper's protocol on a data set
- `catalog_report`: its tables, JSON and contact sheet
- `folders`: CLIP and DINOv2 as extractors, from folders
- `redraw`: a catalogue's pictures redrawn from their codes, beside the originals
- `plots`: the α_r sweep and the contact sheet

Imports `generator.pigeon`, `training.dataset`, `training.efficientnet`, `training.reconstruction` and `schemas`. Imported by
`training.commands` and `training.nano`, whose commands hold `pigeon evaluate`.
"""
