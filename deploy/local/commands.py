"""`pigeon up | down | status`; registered by generator/cli.py."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def register(app: typer.Typer, models: typer.Typer) -> None:
    """Add the embedded servers' commands to `pigeon`."""
    app.command()(up)
    app.command()(down)
    app.command()(status)


def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when they answer; `pigeon down` stops them.")
    ] = False,
    only: Annotated[str | None, typer.Option(help="Comma-separated: postgres,s3,kafka,triton.")] = None,
) -> None:
    """Start the embedded Postgres, S3, Kafka broker and Triton; write their addresses to .pigeon/env."""
    from deploy.local.stack import Stack, parse_services
    from schemas.settings import load_settings

    stopped_by = Stack(load_settings().state_dir).up(detach=detach, services=parse_services(only), say=typer.echo)
    if stopped_by:
        raise typer.Exit(128 + stopped_by)


def down(
    purge: Annotated[bool, typer.Option("--purge", help="Also delete the servers' data, ports and secrets.")] = False,
) -> None:
    """Stop the embedded servers; nothing is left running."""
    from deploy.local.stack import Stack
    from schemas.settings import load_settings

    ran = Stack(load_settings().state_dir).down(purge=purge)
    typer.echo(("stopped" if ran else "nothing was running") + (", data deleted" if purge else ""))


def status(as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
    """Ask each server; exit code 3 when one is not ready."""
    from deploy.local.stack import Stack
    from schemas.settings import load_settings

    servers = Stack(load_settings().state_dir).status()
    if as_json:
        typer.echo(json.dumps([server.to_json() for server in servers], indent=2))
    else:
        for server in servers:
            pid = f"pid {server.pid}" if server.pid else ""
            again = f"  {server.restarts} restarts" if server.restarts else ""
            typer.echo(f"{server.name:<9} {server.state:<9} {server.address:<27} {pid}{again}".rstrip())
    if any(server.state not in ("ready", "external") for server in servers):
        raise typer.Exit(3)
