"""The consumers' Kafka clients (`clients`), what they may do (`rights`), and what brokers and kafka-python get wrong (`quirks`).

Imports `schemas` and `consumers.outage`; imported by the other three folders. Plain `kafka` is the library.
"""
