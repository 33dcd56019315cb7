"""`pigeon consume`, `topics`, `dlq`, `catalog`, `clicks`, `events`."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

topics_app = typer.Typer(help="Kafka topics.", no_args_is_help=True)


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon` and to `pigeon models`."""
    app.command()(consume)
    app.add_typer(topics_app, name="topics")


def consume(
    topics: Annotated[
        list[str] | None, typer.Option("--topics", help="Topic, without prefix; may be repeated. All when left out.")
    ] = None,
    until_idle: Annotated[
        float | None, typer.Option(min=0.1, help="End when all is read and nothing came for this many seconds.")
    ] = None,
    max_records: Annotated[int | None, typer.Option(min=1, help="End after this many records.")] = None,
) -> None:
    """Read events into Postgres, each exactly once, until stopped."""
    from consumers import broker, database, health, logs
    from consumers.progress import Reporter
    from consumers.run import Ingest
    from schemas.errors import InputError
    from schemas.events import CONSUMED
    from schemas.settings import load_settings

    settings = load_settings()
    logs.configure(settings)
    wanted = list(dict.fromkeys(part for text in topics or CONSUMED for part in text.split(",")))
    for topic in wanted:
        if topic not in CONSUMED:
            raise InputError(f"--topics {topic}: no such topic; there are {', '.join(CONSUMED)}")
    database.require_tables(settings.database)
    broker.require_topics(settings.kafka, [settings.kafka.topic_prefix + topic for topic in wanted])
    state = health.Health()
    server = None
    if settings.consumer.metrics_port:
        try:
            server = health.serve(state, settings.consumer.metrics_host, settings.consumer.metrics_port)
        except OSError as error:
            raise InputError(f"consumer.metrics_port {settings.consumer.metrics_port}: {error.strerror}") from None
    reporter = Reporter(settings.consumer.log_every_seconds)
    ingest = Ingest(settings, wanted, until_idle=until_idle, max_records=max_records, health=state, progress=reporter)
    stopped_by: list[int] = []

    def stop(signum: int, frame: object) -> None:
        stopped_by.append(signum)
        ingest.stop()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    try:
        summary = ingest.run()
    finally:
        reporter.close()
        if server:
            server.shutdown()
    typer.echo(f"consumed: {summary.line()}")
    if stopped_by:
        raise typer.Exit(128 + stopped_by[0])


@topics_app.command("create")
def create_topics(
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of each new topic; dead letters have one.")] = 4,
    replication: Annotated[int, typer.Option(min=1, help="Replication factor of new topics.")] = 1,
) -> None:
    """Make every topic that does not exist yet."""
    from consumers import broker
    from schemas.settings import load_settings

    made, there = broker.create_topics(load_settings().kafka, partitions, replication)
    typer.echo(f"topics: {len(made)} created, {len(there)} existed")
