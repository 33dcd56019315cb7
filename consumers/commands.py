"""`pigeon consume`, `topics`, `dlq`, `histories`, `catalog`, `clicks`, `events`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

topics_app = typer.Typer(help="Kafka topics.", no_args_is_help=True)
dlq_app = typer.Typer(help="Dead letters: records that could not be stored, with the reason.", no_args_is_help=True)
histories_app = typer.Typer(help="What the night reads of each user.", no_args_is_help=True)
events_app = typer.Typer(help="JSON Schemas of the events.", no_args_is_help=True)


IMPORTS = (
    ("catalog", "catalog.items.v1", "Catalogue items"),
    ("clicks", "user.interactions.v1", "Interactions of users with items"),
    ("recommendations", "user.recommendations.v1", "Recommendations, the night's targets,"),
    ("feedback", "posters.feedback.v1", "Feedback on posters"),
)

Topic = Annotated[str | None, typer.Option("--topic", help="Only of this source topic.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Only with this reason code.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most this many, oldest first.")]
Cap = Annotated[int, typer.Option("--limit", min=1, help="At most this many, oldest first; run it again for more.")]
File = Annotated[Path, typer.Argument(help="Table (CSV and its kin), JSON lines, JSON array or Parquet; gzip, too.")]
Map = Annotated[list[str] | None, typer.Option(help="COLUMN=FIELD: which column is which field; may be repeated.")]
Constants = Annotated[
    list[str] | None,
    typer.Option(help="FIELD=TEXT in every row; {column} stands for a cell: image_uri=posters/{item_id}.jpg."),
]
Kind = Annotated[str | None, typer.Option(help="The kind of all rows, such as click.")]
Keep = Annotated[str, typer.Option(help="Take only rows for which this holds, such as 'rating>=4'.")]
Delimiter = Annotated[
    str, typer.Option(help="What is between columns, such as ';', 'tab' or '::'. Found out if empty.")
]
Encoding = Annotated[str, typer.Option(help="Such as latin-1 or utf-16. UTF-8 when empty.")]
NoHeader = Annotated[bool, typer.Option("--no-header", help="The first line is data; columns are called 1, 2, 3...")]
TimeZone = Annotated[str, typer.Option(help="Zone of times that have none, such as UTC or Europe/Berlin.")]
MaxSkipped = Annotated[float, typer.Option(min=0, max=1, help="A larger share of skipped rows ends with exit code 7.")]
CAP = 1_000
"""Dead letters that one replay or drop takes by default."""


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon` and to `pigeon models`."""
    app.command()(consume)
    app.add_typer(topics_app, name="topics")
    app.add_typer(dlq_app, name="dlq")
    app.add_typer(histories_app, name="histories")
    app.add_typer(events_app, name="events")
    for name, topic, what in IMPORTS:
        group = typer.Typer(help=f"{what} from files.", no_args_is_help=True)
        group.command("import")(_importer(topic))
        group.command("check")(_importer(topic, check=True))
        app.add_typer(group, name=name)


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
    import sys

    from consumers import postgres
    from consumers.kafka import rights
    from consumers.loop import probes
    from consumers.loop.health import Health
    from consumers.loop.ingest import Ingest
    from consumers.loop.progress import Reporter
    from consumers.loop.thread_stacks import Stacks
    from schemas.errors import InputError
    from schemas.events import CONSUMED
    from schemas.runtime import health, logs
    from schemas.runtime.stop_signals import stop_signals
    from schemas.settings import load_settings

    settings = load_settings()
    logs.configure(settings)
    wanted = list(dict.fromkeys(part for text in topics or CONSUMED for part in text.split(",")))
    for topic in wanted:
        if topic not in CONSUMED:
            raise InputError(f"--topics {topic}: no such topic; there are {', '.join(CONSUMED)}")
    postgres.require_tables(settings.database)
    names = [settings.kafka.topic_prefix + topic for topic in wanted]
    rights.require(settings.kafka, rights.to_consume(settings.kafka, names))
    stores = {"database": lambda: probes.postgres(settings.database), "kafka": lambda: probes.kafka(settings.kafka)}
    limits = (settings.consumer.stuck_loop_seconds, settings.consumer.stuck_work_seconds)
    stacks = Stacks(sys.stderr, limits[0])
    state = Health(probes.Probes(stores), stacks, *limits)
    server = None
    if settings.consumer.metrics_port:
        try:
            server = health.serve(state, settings.consumer.metrics_host, settings.consumer.metrics_port)
        except OSError as error:
            raise InputError(f"consumer.metrics_port {settings.consumer.metrics_port}: {error.strerror}") from None
    reporter = Reporter(settings.consumer.log_every_seconds)
    ingest = Ingest(settings, wanted, until_idle=until_idle, max_records=max_records, health=state, progress=reporter)
    with stop_signals(lambda _: ingest.stop()) as received:
        try:
            summary = ingest.run()
        finally:
            reporter.close()
            stacks.close()
            if server:
                server.shutdown()
        typer.echo(f"consumed: {summary.line()}")
    if received:
        raise typer.Exit(128 + received[0])


@topics_app.command("create")
def create_topics(
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of each new topic; dead letters have one.")] = 4,
    replication: Annotated[int, typer.Option(min=1, help="Replication factor of new topics.")] = 1,
) -> None:
    """Make every topic that does not exist yet."""
    from consumers.kafka import clients
    from schemas.settings import load_settings

    made, there = clients.create_topics(load_settings().kafka, partitions, replication)
    typer.echo(f"topics: {len(made)} created, {len(there)} existed")


@histories_app.command("rebuild")
def rebuild_histories() -> None:
    """Make all histories again from the log, once, when consumer.history_size or the rule changed."""
    from consumers import postgres
    from consumers.write.rebuild import rebuild
    from schemas.settings import load_settings

    settings = load_settings()
    postgres.require_tables(settings.database)
    done = rebuild(settings)
    typer.echo(f"histories: {done.users} looked at, {done.changed} changed")


def _importer(topic: str, *, check: bool = False) -> Callable[..., None]:
    def command(
        file: File,
        map: Map = None,
        set: Constants = None,
        kind: Kind = None,
        keep: Keep = "",
        delimiter: Delimiter = "",
        encoding: Encoding = "",
        no_header: NoHeader = False,
        time_zone: TimeZone = "",
        max_skipped: MaxSkipped = 0.001,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only; upload and send nothing.")] = False,
        strict: Annotated[bool, typer.Option("--strict", help="Fail, and send nothing, if any row is bad.")] = False,
    ) -> None:
        from consumers.files import imports, verdict
        from consumers.files.layout import ReadOptions
        from consumers.loop.progress import Counting
        from schemas.settings import load_settings

        constants = _pairs("--set", set) | ({"kind": kind} if kind else {})
        options = ReadOptions(
            _pairs("--map", map), constants, delimiter, encoding, not no_header, time_zone=time_zone, keep=keep
        )
        looked = imports.look(topic, file, options)
        for line in looked.describe().splitlines():
            typer.echo(f"{file.name}: {line}")
        only_look = check or dry_run
        with Counting(file.name) as progress:
            report = imports.run(load_settings(), topic, looked, dry_run=only_look, strict=strict, progress=progress)
        for line in verdict.lines(report):
            typer.echo(f"{file}: {line}", err=True)
        typer.echo(f"{file.name}: {report.line()}" + (" (nothing was sent)" if only_look else f" -> {topic}"))
        verdict.judge(report, file, max_skipped)

    what = "Look at a file as `import` would, and send nothing." if check else f"Send a file's rows to {topic}."
    command.__doc__ = what + " Each bad row is named and skipped."
    return command


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    from schemas.errors import InputError

    pairs: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"{option} {text}: must be two names with = between them")
        pairs[name] = value
    return pairs


@dlq_app.command("list")
def dlq_list(topic: Topic = None, reason: Reason = None, limit: Limit = None) -> None:
    """List open dead letters, oldest first."""
    from consumers import dead_letters
    from schemas.settings import load_settings

    letters = dead_letters.open_letters(load_settings(), topic, reason, limit)
    for letter in letters:
        typer.echo(f"{letter.place}  {letter.reason}  from {letter.source}  {letter.detail}")
    typer.echo(f"dead letters: {len(letters)} open")


@dlq_app.command("stats")
def dlq_stats(topic: Topic = None) -> None:
    """Count open dead letters by topic and reason."""
    from consumers import dead_letters
    from schemas.settings import load_settings

    counts = dead_letters.stats(load_settings(), topic)
    for one in counts:
        typer.echo(f"{one.count:>8}  {one.topic}  {one.reason}  oldest {one.oldest:%Y-%m-%d %H:%M} UTC")
    typer.echo(f"dead letters: {sum(one.count for one in counts)} open")


@dlq_app.command("index")
def dlq_index() -> None:
    """Compare the index of dead letters with the topics: add what it lacks, remove what has left them.

    Every other command of `dlq` does it first, and the scheduler's upkeep does it daily.
    """
    from consumers import dead_letters, postgres
    from schemas.settings import load_settings

    settings = load_settings()
    postgres.require_tables(settings.database)
    done = dead_letters.catch_up(settings)
    typer.echo(f"dead letters: {done.added} indexed, {done.removed} gone from their topics")


@dlq_app.command("show")
def dlq_show(place: Annotated[str, typer.Argument(metavar="TOPIC/PARTITION/OFFSET")]) -> None:
    """Print one dead letter whole: headers, key and value."""
    from consumers import dead_letters
    from schemas.settings import load_settings

    letter = dead_letters.find(load_settings(), place)
    for name, value in letter.headers:
        typer.echo(f"{name}: {value.decode('utf-8', 'backslashreplace')}")
    for name, content in (("key", letter.key), ("value", letter.value)):
        typer.echo(f"{name}: " + ("(null)" if content is None else content.decode("utf-8", "backslashreplace")))


@dlq_app.command("replay")
def dlq_replay(topic: Topic = None, reason: Reason = None, limit: Cap = CAP) -> None:
    """Send open dead letters to their source topics again."""
    from consumers import dead_letters
    from schemas.settings import load_settings

    settings = load_settings()
    count = dead_letters.replay(settings, dead_letters.read(settings, topic, reason, limit))
    typer.echo(f"dead letters: {count} replayed")


@dlq_app.command("drop")
def dlq_drop(
    topic: Topic = None,
    reason: Reason = None,
    limit: Cap = CAP,
    everything: Annotated[
        bool, typer.Option("--all", help="Needed when neither --topic nor --reason is given.")
    ] = False,
) -> None:
    """Set open dead letters aside for good."""
    from consumers import dead_letters
    from schemas.errors import InputError
    from schemas.settings import load_settings

    if not (topic or reason or everything):
        raise InputError("say which: --topic, --reason or --all")
    settings = load_settings()
    count = dead_letters.drop(settings, dead_letters.open_letters(settings, topic, reason, limit))
    typer.echo(f"dead letters: {count} dropped")


@events_app.command("export")
def events_export() -> None:
    """Write the events' JSON Schemas to schemas/jsonschema/."""
    from schemas import export

    changed = export.export()
    typer.echo(f"event schemas: {len(changed)} written{': ' if changed else ''}{', '.join(changed)}")


@events_app.command("check")
def events_check() -> None:
    """Fail when schemas/jsonschema/ differs from the events."""
    from schemas import export
    from schemas.errors import Refused

    changed = export.drift()
    if changed:
        raise Refused(f"event schemas differ: {', '.join(changed)}; run `pigeon events export`")
    typer.echo(f"event schemas: {len(export.documents())} agree")
