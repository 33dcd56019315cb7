"""The embedded servers of `pigeon up`, real ones from wheels: Postgres, S3, Kafka's protocol, Triton.

    commands     `pigeon up | down | status`
    stack        Stack: what a caller uses (up, down, status); talks to the supervisor
    supervisor   the process that owns the servers: start in order, watch, restart, stop
    watchdog     restart limits, and Triton's dead stubs
    server       what every embedded server has in common
    postgres, seaweedfs, tansu, triton (triton_env, triton_control)   one module per server
    engine_env   the Python environment of vLLM, for `make engine`
    process      children, their identities, and leaving none behind
    state        folders, ports, secrets and the run record of one state folder
    environment  the PIGEON_* addresses, given or written
    ports        a block of ports that follows from the state folder
    noida        a second Kafka-protocol broker, for tests
    demo         `pigeon demo`
    fonts        `pigeon fonts`

Imports `schemas` only. Linux only, because the servers' wheels are.
"""
