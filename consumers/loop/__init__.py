"""The loop of `pigeon consume`: which partitions are ours, how far we are, and what can be watched meanwhile."""
