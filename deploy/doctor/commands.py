"""`pigeon doctor`; added by generator/cli.py, which knows whose probes there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from schemas.runtime.checkup import Finding, Probe
    from schemas.settings import Settings

AREAS = ("kafka", "postgres", "s3", "triton", "machine")
_COLORS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "wrong": typer.colors.RED}


def add_doctor(app: typer.Typer, parts: Sequence[str]) -> None:
    """Add the command to `pigeon`.

    Args:
        parts: modules that each have `PROBES`; imported when the command runs.
    """

    @app.command()
    def doctor(
        only: Annotated[str | None, typer.Option(help=f"Comma-separated: {','.join(AREAS)}.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    ) -> None:
        """Ask every server of the settings what it can do; say what is wrong, and how to mend it.

        Leaves nothing behind. Ends with exit code 0 where nothing is wrong, else with that of the first fault that a person mends.
        """
        from schemas.runtime.checkup import exit_code, look
        from schemas.settings import load_settings

        wanted = _areas(only)
        settings = load_settings()
        findings = look([probe for probe in _probes(parts) if probe.area in wanted], settings)
        _show(findings, as_json=as_json)
        if code := exit_code(findings):
            raise typer.Exit(code)


def _areas(only: str | None) -> tuple[str, ...]:
    from schemas.errors import InputError

    wanted = AREAS if only is None else tuple(dict.fromkeys(name.strip() for name in only.split(",")))
    for name in wanted:
        if name not in AREAS:
            raise InputError(f"--only {name}: no such part; there are {', '.join(AREAS)}")
    return wanted


def _probes(parts: Sequence[str]) -> list[Probe]:
    """The probes of all parts; of one whose packages are not installed, one that says so."""
    import importlib

    from schemas.runtime.checkup import Probe

    probes: list[Probe] = []
    for part in parts:
        try:
            probes += importlib.import_module(part).PROBES
        except ModuleNotFoundError as error:
            area = _AREA_OF[part.partition(".doctor")[0]]
            probes.append(Probe(area, "packages", _not_installed(error)))
    return probes


_AREA_OF = {
    "consumers": "kafka",
    "migrations": "postgres",
    "generator.storage": "s3",
    "generator.serving": "triton",
    "generator.nightly": "machine",
}


def _not_installed(missing: ModuleNotFoundError) -> Callable[[Settings], Iterable[Finding]]:
    def ask(_: Settings) -> Iterable[Finding]:
        raise missing

    return ask


def _show(findings: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([finding.to_json() for finding in findings], indent=2))
        return
    area = max((len(finding.area) for finding in findings), default=0)
    subject = max((len(finding.subject) for finding in findings), default=0)
    for finding in findings:
        verdict = typer.style(f"{finding.verdict:<5}", fg=_COLORS[finding.verdict])
        typer.echo(f"{verdict}  {finding.area:<{area}}  {finding.subject:<{subject}}  {finding.line()}")
    counts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in ("wrong", "warn")}
    typer.echo(f"doctor: {counts['wrong']} wrong, {counts['warn']} to look at, {len(findings)} looked at")
