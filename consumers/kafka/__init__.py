"""The consumers' Kafka clients (`clients`), events handed over one by one (`acknowledged`), and what brokers get wrong (`quirks`).

Imports `schemas` and `consumers.outage`; imported by the other three folders. Plain `kafka` is the library.
"""
