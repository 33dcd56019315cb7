"""The consumers' Kafka clients (`clients`), and what brokers and kafka-python get wrong (`quirks`).

Imports `schemas` and `consumers.outage`; imported by the other three folders. Plain `kafka` is the library.
"""
