"""The consumers' Kafka clients.

    clients        every client, the topics, and which errors are final
    acknowledged   events handed over one by one, each with a future
    rights         what a command needs at the broker
    quirks         what brokers and kafka-python get wrong

Imports `schemas` and `consumers.outage`; imported by the other three folders. Plain `kafka` is the library.
"""
