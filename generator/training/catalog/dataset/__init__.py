"""A team's own catalogue and clicks as an immutable data set, for stage 1 and its evaluation.

    manifest       what a data set is made of, and its hash; no torch
    scratch        what is read of a source, in a file on disk that a killed build goes on with
    files          catalogue, clicks and windows from files
    database       catalogue and clicks from Postgres, erased users left out
    pictures       pictures, each fetched once and stored at the checkpoint's size
    windows        sliding windows of interactions, and which split each belongs to
    shards         Parquet shards and their hashes
    build          from a source to a folder
    card           the card and the contact sheet
    reader         a data set's windows, items and pictures
    codes          the codes of its pictures by a checkpoint's tokenizer, computed once
    storage        data sets in the bucket
    replace        which data sets have users who were erased since, and their replacement
    erasure        a new version without erased users, and the end of the old one

A data set is a folder, or the prefix `datasets/<id>/` of the bucket:

    dataset.json              manifest: counts, what was left out, every file with its hash
    items.parquet             item_id, title, description, image (a hash)
    images/NNNNN.parquet      sha256, png: each picture once
    windows/SPLIT-NNNNN.parquet   user_id, occurred_at, history, reference; given apart: target_codes, target_image
    card.md, contact-sheet.webp, redrawn.webp   for people

Imports `generator.pigeon`, `generator.storage` and `schemas`. Imported by the rest of `training.catalog`.
"""
