"""What every long-running part needs, each in a module of its own.

    logs          structured logs on stderr, with the process's ids
    trace         the trace that a process belongs to
    metrics       the one Prometheus registry of a process
    health        the HTTP server of /metrics, /live and /ready
    stop_signals  SIGINT and SIGTERM while a part runs
    checkup       probes of servers and machine, for `pigeon doctor` and before a part begins
    kafka_login   the security options of every Kafka client

Imported by every part; imports `schemas` only. Client libraries are imported inside functions.
"""
