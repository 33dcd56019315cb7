"""From records to rows: decoded, batched, and written with the next offsets in one transaction.

Imports `kafka` and the modules beside the folders; imported by `loop`, `consumers.dead_letters` and
`consumers.dead_letter_topics`.
"""
