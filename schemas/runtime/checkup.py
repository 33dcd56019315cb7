"""Probes of servers and machine: what each part asks for `pigeon doctor`, and before it begins.

A probe only looks, or takes away again what it wrote. One that hangs is told as such when its deadline has passed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import structlog

from schemas.errors import InputError, PigeonError, ServerUnavailable

if TYPE_CHECKING:
    from schemas.settings import Settings

Verdict = Literal["ok", "warn", "wrong"]
log = structlog.get_logger("pigeon.checkup")


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what is the matter, and how to mend it."""

    area: str
    subject: str
    verdict: Verdict
    text: str
    mend: str = ""
    exit_code: int = 0
    """Exit code that a wrong one ends with."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """For people, without area and subject."""
        return f"{self.text}: {self.mend}" if self.mend else self.text


@dataclass(frozen=True)
class Probe:
    """A question to a server, or to the machine; `ask` may raise PigeonError instead of giving a finding."""

    area: str
    subject: str
    ask: Callable[[Settings], Iterable[Finding]]
    seconds: float = 15.0


def ok(area: str, subject: str, text: str) -> Finding:
    """What is as it should be."""
    return Finding(area, subject, "ok", text)


def warn(area: str, subject: str, text: str, mend: str = "") -> Finding:
    """What works, and will not always."""
    return Finding(area, subject, "warn", text, mend)


def wrong(area: str, subject: str, text: str, mend: str = "", kind: type[PigeonError] = InputError) -> Finding:
    """What keeps a part from its work."""
    return Finding(area, subject, "wrong", text, mend, kind.exit_code)


def look(probes: Sequence[Probe], settings: Settings) -> list[Finding]:
    """Ask all probes, one thread for each area, and return what they found, in their order.

    Probes of an area are asked one after the other; where the first one finds the server away, the rest would only wait.
    """
    asked = {area: _Area([probe for probe in probes if probe.area == area], settings) for area in _areas(probes)}
    return [finding for area in asked.values() for finding in area.findings()]


def require(probes: Sequence[Probe], settings: Settings) -> None:
    """Ask probes before a part begins: refuse what waiting would not mend, log what else is wrong.

    Raises:
        InputError: the first thing that a setting, a right or an installation must mend.
    """
    for finding in look(probes, settings):
        if finding.exit_code == InputError.exit_code:
            raise InputError(f"{finding.area}: {finding.line()}")
        if finding.verdict == "wrong":
            log.warning("checkup", area=finding.area, subject=finding.subject, found=finding.line())


def exit_code(findings: Iterable[Finding]) -> int:
    """0 where nothing is wrong; else of what is wrong a setting's code before a server's."""
    return min((finding.exit_code for finding in findings if finding.verdict == "wrong"), default=0)


def _areas(probes: Sequence[Probe]) -> list[str]:
    return list(dict.fromkeys(probe.area for probe in probes))


class _Area:
    """One area's probes, asked in a thread that nobody waits for longer than its deadlines."""

    def __init__(self, probes: Sequence[Probe], settings: Settings) -> None:
        self._probes = probes
        self._settings = settings
        self._found: dict[int, list[Finding]] = {}
        self._done = [threading.Event() for _ in probes]
        threading.Thread(target=self._ask_all, name=f"pigeon-doctor-{probes[0].area}", daemon=True).start()

    def findings(self) -> list[Finding]:
        """What was found; a probe that hangs ends its area, which waits for no other."""
        found: list[Finding] = []
        for place, (probe, done) in enumerate(zip(self._probes, self._done, strict=True)):
            if not done.wait(probe.seconds):
                text = f"no answer within {probe.seconds:g} s"
                return [
                    *found,
                    *self._found.get(place, []),
                    wrong(probe.area, probe.subject, text, kind=ServerUnavailable),
                ]
            found += self._found[place]
        return found

    def _ask_all(self) -> None:
        away = False
        for place, (probe, done) in enumerate(zip(self._probes, self._done, strict=True)):
            self._found[place] = []
            if not away:
                away = self._ask(probe, self._found[place])
            done.set()

    def _ask(self, probe: Probe, found: list[Finding]) -> bool:
        """Fill `found`; returns whether the server is away or refuses us, so that more questions are no use."""
        try:
            found.extend(probe.ask(self._settings))
        except PigeonError as error:
            found.append(wrong(probe.area, probe.subject, str(error), kind=type(error)))
            return True
        except ModuleNotFoundError as error:
            text = f"not asked: {error.name} is not installed on this machine"
            found.append(warn(probe.area, probe.subject, text))
            return True
        except Exception as error:  # noqa: BLE001 - a broken probe is a finding, and the others are asked
            found.append(wrong(probe.area, probe.subject, f"{type(error).__name__}: {error}", kind=PigeonError))
        return False
