"""Commands `pigeon loop ...`; registered by generator/cli.py."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add this part's commands to `pigeon`."""
    group = typer.Typer(
        help="What feedback on posters teaches: the click model, and the control group's comparison.",
        no_args_is_help=True,
    )
    group.command("fit")(fit)
    group.command("models")(list_models)
    group.command("retire")(retire)
    group.command("worth")(worth)
    app.add_typer(group, name="loop")


def fit(
    until: Annotated[
        str | None, typer.Option("--until", metavar="T", help="End of the window, ISO 8601 with a time zone; now.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fit and judge, write nothing.")] = False,
) -> None:
    """Fit and judge a click model; nights choose by it if it beats the base rate.

    Ends with 8 when it is refused or there are too few clicks."""
    from generator.feedback.clicks.learning import learn_clicks
    from generator.storage.postgres import connect
    from schemas.errors import Refused
    from schemas.settings import load_settings

    settings = load_settings()
    learned = learn_clicks(connect(settings.database), settings.clicks, _moment(until), typer.echo, dry_run=dry_run)
    if learned.state == "refused":
        raise Refused(learned.reason)


def list_models(as_json: Json = False) -> None:
    """List click models: state, window, how much better than the base rate, and why."""
    import json

    from sqlalchemy.orm import Session

    from generator.feedback.clicks.versions import list_models as read
    from generator.storage.postgres import connect, plain_errors
    from schemas.settings import load_settings

    engine = connect(load_settings().database)
    with plain_errors(engine), Session(engine) as session:
        rows: list[dict[str, Any]] = [
            {
                "number": row.number,
                "model_id": row.model_id,
                "state": row.state,
                "reason": row.reason,
                "base_weights": row.base_weights,
                "window": [row.window_start.isoformat(), row.window_end.isoformat()],
                "metrics": row.metrics,
                "counts": row.counts,
            }
            for row in read(session)
        ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        typer.echo("no click models yet: `pigeon loop fit`; nights choose by the model's own preference")
    for row in rows:
        typer.echo(f"{row['number']:4} {row['state']:8} until {row['window'][1][:16]}  {row['reason']}")


def retire(reason: Annotated[str, typer.Option("--reason", help="Kept with the model.")]) -> None:
    """Retire the active click model: nights choose by the model's own preference again."""
    from sqlalchemy.orm import Session

    from generator.feedback.clicks import versions
    from generator.storage.postgres import connect, plain_errors
    from schemas.errors import InputError
    from schemas.settings import load_settings

    if not reason.strip():
        raise InputError("--reason must not be empty: it is kept with the model")
    engine = connect(load_settings().database)
    with plain_errors(engine), Session(engine) as session, session.begin():
        number = versions.retire(session, f"retired: {reason}")
    typer.echo(f"click model {number} is retired: the next night chooses by the model's own preference")


def worth(
    days: Annotated[int, typer.Option("--days", min=1, metavar="N", help="Days of feedback that are compared.")] = 28,
    until: Annotated[
        str | None, typer.Option("--until", metavar="T", help="End of the window, ISO 8601 with a time zone; now.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare drawn posters with the items' own, which the control group is shown: lift of the click rate."""
    import json

    from sqlalchemy.orm import Session

    from generator.storage.postgres import connect, plain_errors
    from generator.worth import TooLittle, read_worth
    from schemas.errors import Refused
    from schemas.settings import load_settings

    settings, stop = load_settings(), _moment(until)
    engine = connect(settings.database)
    with plain_errors(engine), Session(engine) as session:
        found = read_worth(session, settings.clicks, stop, days)
    if as_json:
        typer.echo(json.dumps(found.figures(), indent=2))
    if isinstance(found, TooLittle):
        raise Refused(found.words)
    if not as_json:
        typer.echo(found.words)


def _moment(given: str | None) -> datetime:
    from schemas.errors import InputError

    if given is None:
        return datetime.now(UTC)
    wanted = InputError(f"--until {given!r} is not ISO 8601 with a time zone, for example 2026-11-29T05:00+00:00")
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise wanted from None
    if moment.tzinfo is None:
        raise wanted
    return moment
