"""The consumers' Kafka clients, and what brokers get wrong.

    clients        every Kafka client, the topics, final errors
    acknowledged   events handed over one by one, each with a future
    quirks         what brokers and kafka-python get wrong, worked round

Imports `schemas` and `consumers.outage`; imported by the other three folders. Plain `kafka` is the library.
"""
