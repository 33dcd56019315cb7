"""A file's rows with their true line numbers; one that cannot be read costs only itself."""

from __future__ import annotations

import csv
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from consumers.files.layout import Layout
from schemas.errors import InputError

MAX_ROW_LINES = 1_000
"""Lines that one quoted cell may span; past them its quote is taken for unclosed."""
MAX_ARRAY_BYTES = 1 << 28
Row = dict[str, Any]


class BadRow(Exception):
    """A row that cannot be read; the text says why."""


def rows(layout: Layout) -> Iterator[tuple[int, Row | BadRow]]:
    """(line number, cells by column or what is wrong with them).

    Parquet and JSON arrays have row numbers, from 1.

    Raises:
        InputError: the file cannot be read on.
    """
    read = {"table": _table, "JSON lines": _json_lines, "JSON array": _json_array, "Parquet": _parquet}[layout.kind]
    try:
        yield from read(layout)
    except (OSError, EOFError) as error:
        raise InputError(f"{layout.path}: {getattr(error, 'strerror', None) or error}") from None


class _Lines:
    """A file's lines for the csv module, remembered while one row is read, so that they can be read again."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._source = iter(lines)
        self._again: deque[str] = deque()
        self.number = 0
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if len(self.taken) == MAX_ROW_LINES:
            raise csv.Error(f"a quote is not closed within {MAX_ROW_LINES} lines")
        line = self._again.popleft() if self._again else next(self._source)
        self.number += 1
        self.taken.append(line)
        return line

    def reread(self) -> int:
        """Give back all lines of the row but its first; returns how many."""
        back = self.taken[1:]
        self._again.extendleft(reversed(back))
        self.number -= len(back)
        return len(back)


def _table(layout: Layout) -> Iterator[tuple[int, Row | BadRow]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with layout.lines() as file:
        lines = _Lines(file)
        if layout.header:
            next(_cells(lines, layout), None)
        for number, cells in _cells(lines, layout):
            if isinstance(cells, BadRow):
                yield number, cells
            elif any(cells):
                yield number, dict(zip(layout.columns, cells, strict=True))


def _cells(lines: _Lines, layout: Layout) -> Iterator[tuple[int, list[str] | BadRow]]:
    wanted = len(layout.columns)
    while True:
        lines.taken.clear()
        start = lines.number + 1
        problem = ""
        cells: list[str] = []
        try:
            cells = _next_row(lines, layout.delimiter)
        except StopIteration:
            if not lines.taken:
                return
            problem = "not closed before the end of the file"
        except csv.Error as error:
            problem = str(error)
        if not cells and not problem:
            continue  # an empty line
        if not problem and len(cells) != wanted:
            problem = f"{len(cells)} values for {wanted} columns"
        if not problem:
            yield start, [cell.strip() for cell in cells]
            continue
        swallowed = lines.reread()
        if swallowed:
            problem = f"a quote is opened and not closed here: {problem}; the {swallowed} lines after it are read again"
        yield start, BadRow(problem)


def _next_row(lines: _Lines, delimiter: str) -> list[str]:
    if len(delimiter) > 1:
        line = next(lines).rstrip("\r\n")
        return line.split(delimiter) if line else []
    return next(csv.reader(lines, delimiter=delimiter, strict=True))


def _json_lines(layout: Layout) -> Iterator[tuple[int, Row | BadRow]]:
    with layout.lines() as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _json_row(line)


def _json_row(line: str) -> Row | BadRow:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow(f"not valid JSON: {error}")
    return said if isinstance(said, dict) else BadRow("must be a JSON object, one per line")


def _json_array(layout: Layout) -> Iterator[tuple[int, Row | BadRow]]:
    with layout.open() as file:
        content = file.read(MAX_ARRAY_BYTES + 1)
    if len(content) > MAX_ARRAY_BYTES:
        raise InputError(
            f"{layout.path}: a JSON array of over {MAX_ARRAY_BYTES >> 20} MiB; write one object per line (jq -c '.[]')"
        )
    try:
        said = json.loads(content.decode(layout.encoding))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{layout.path}: not valid JSON: {error}") from None
    for number, row in enumerate(said, 1):
        yield number, row if isinstance(row, dict) else BadRow("must be a JSON object")


def _parquet(layout: Layout) -> Iterator[tuple[int, Row | BadRow]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(layout.path) as file:
            for batch in file.iter_batches(batch_size=4_096):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException as error:
        raise InputError(f"{layout.path}: damaged Parquet after row {number}: {error}") from None
