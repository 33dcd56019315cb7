"""Every Kafka client we make, the topics, and what brokers and kafka-python get wrong."""
