"""The loop of `pigeon consume`: our partitions, how far they are, and what can be watched.

Imports `write`, `kafka` and the modules beside the folders; imported by `consumers.commands` only.
"""
