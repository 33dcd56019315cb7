"""What an import says at its end: the rows to look at, and whether it was a success."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from consumers.files.imports import Report
from schemas.errors import InputError, PartialFailure


def lines(report: Report) -> Iterator[str]:
    """The sampled rows, bad ones first, with their lines."""
    for line, problem in sorted(report.first):
        yield f"line {line}: {problem}"
    if report.bad > len(report.first):
        yield f"and {report.bad - len(report.first)} more"
    for line, oddity in sorted(report.warnings):
        yield f"line {line}: {oddity}: sent all the same"


def judge(report: Report, path: Path, max_skipped: float) -> None:
    """Whether enough of a file was good.

    Raises:
        InputError: it has rows, and none of them is good.
        PartialFailure: more than `max_skipped`, a share, were skipped.
    """
    if report.bad and not report.sent:
        raise InputError(f"{path}: none of its {report.bad} rows is good; the first: {min(report.first)[1]}")
    if report.bad_share > max_skipped:
        raise PartialFailure(
            f"{path}: {report.bad} of {report.bad + report.sent} rows skipped, more than --max-skipped {max_skipped:g} allows"
        )
