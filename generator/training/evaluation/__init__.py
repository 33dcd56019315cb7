"""`pigeon evaluate`: what a checkpoint draws for simulated users, measured against drawings whose concept, style and palette are known.

Parts: who asks for what (`samples`), what is drawn for them and what it is compared with (`rows`), how pictures become vectors
(`extractors`), real drawings to find the nearest of (`gallery`), the figures (`metrics`, `measure`, `bootstrap`), and
what is written (`report`, `plots`). `run.evaluate` is the whole of it.
"""
