"""What a file is taken for: kind, encoding, delimiter and columns, by its first bytes."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal, cast

from schemas.errors import InputError

Kind = Literal["table", "JSON lines", "JSON array", "Parquet"]
SAMPLE_BYTES = 1 << 18
DELIMITERS = (",", "\t", ";", "|", "::")
"""Tried in this order; the one that cuts the sample's lines into most columns, all alike, is taken."""
_SPOKEN = {"\t": "tab"}


@dataclass(frozen=True)
class ReadOptions:
    """What a person says of a file; what is empty is found out."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Column -> field of the event."""
    constants: Mapping[str, str] = field(default_factory=dict)
    """Field -> its text in every row; `{column}` in it stands for that row's cell."""
    delimiter: str = ""
    encoding: str = ""
    header: bool = True
    """Without one the columns are called 1, 2, 3 and so on."""
    time_zone: str = ""
    """The zone that times without one are in."""
    keep: str = ""
    """Condition of the rows that count, such as `rating>=4`."""


@dataclass(frozen=True)
class Layout:
    """A file as it will be read."""

    path: Path
    kind: Kind
    gzipped: bool = False
    encoding: str = "utf-8-sig"
    delimiter: str = ""
    header: bool = True
    columns: tuple[str, ...] = ()
    """Empty for JSON, whose rows each name their own."""

    def open(self) -> BinaryIO:
        """The bytes, unpacked."""
        return cast("BinaryIO", gzip.open(self.path) if self.gzipped else self.path.open("rb"))

    def lines(self) -> io.TextIOWrapper:
        """The text; a byte that is none of the encoding comes as a lone surrogate."""
        return io.TextIOWrapper(self.open(), self.encoding, "surrogateescape", newline="")

    def describe(self) -> str:
        """What it was taken for, in a line."""
        parts: list[str] = [self.kind + (", gzip" if self.gzipped else "")]
        if self.kind != "Parquet":
            parts.append({"utf-8-sig": "UTF-8"}.get(self.encoding, self.encoding))
        if self.kind == "table":
            parts.append(f"columns cut at {_SPOKEN.get(self.delimiter, repr(self.delimiter))}")
            parts.append("names in the first line" if self.header else "no line of names")
        if self.columns:
            parts.append("columns " + ", ".join(self.columns))
        return "; ".join(parts)


def detect(path: Path, options: ReadOptions) -> Layout:
    """Look at the beginning of a file.

    Raises:
        InputError: it cannot be opened, or is neither text nor Parquet; a name of the options is unknown.
    """
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
        found = Layout(path, "table", gzipped=gzipped)
        with found.open() as file:
            sample = file.read(SAMPLE_BYTES)
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if sample[:4] == b"PAR1":
        return replace(found, kind="Parquet", columns=_parquet_columns(path))
    encoding = options.encoding or _encoding(path, sample)
    try:
        text = sample.decode(encoding, "surrogateescape")
    except (LookupError, UnicodeError) as error:
        raise InputError(f"--encoding {encoding}: {error}") from None
    found = replace(found, encoding=encoding)
    start = text.lstrip()[:1]
    if start == "[" and path.name.lower().removesuffix(".gz").endswith(".json"):
        return replace(found, kind="JSON array")
    if start in ("{", "["):
        return replace(found, kind="JSON lines")
    return _table(found, text, options)


def cut(line: str, delimiter: str) -> list[str]:
    """A line's cells."""
    if len(delimiter) > 1:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter), [])


def _table(found: Layout, text: str, options: ReadOptions) -> Layout:
    lines = [line for line in text.splitlines()[:50] if line.strip()]
    if len(lines) > 1 and len(text) >= SAMPLE_BYTES:
        lines.pop()  # perhaps half of it
    delimiter = {"tab": "\t", "\\t": "\t"}.get(options.delimiter, options.delimiter) or _delimiter(lines)
    first = [cell.strip() for cell in cut(lines[0], delimiter)] if lines else []
    columns = first if options.header else [str(number) for number in range(1, len(first) + 1)]
    return replace(found, delimiter=delimiter, header=options.header, columns=tuple(columns))


def _delimiter(lines: list[str]) -> str:
    def columns(delimiter: str) -> int:
        counts = {len(cut(line, delimiter)) for line in lines}
        return counts.pop() if len(counts) == 1 else len(cut(lines[0], delimiter)) - len(counts)

    # "::" is also ":" twice; "|" stands in lists of a comma's table: most columns win, the first of equals.
    return max(DELIMITERS, key=columns) if lines else ","


def _encoding(path: Path, sample: bytes) -> str:
    if sample[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\x00" in sample:
        raise InputError(f"{path}: neither text nor Parquet; a spreadsheet must be saved as CSV first")
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text = decoder.decode(sample, final=len(sample) < SAMPLE_BYTES)  # else the last character may be half of one
    if any("\udc80" <= character <= "\udcff" for character in text):
        line = sample[: _first_bad(sample)].count(b"\n") + 1
        raise InputError(f"{path}: line {line} is not UTF-8; if it is Western European, add --encoding latin-1")
    return "utf-8-sig"


def _first_bad(sample: bytes) -> int:
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _parquet_columns(path: Path) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return tuple(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: damaged Parquet: {error}") from None
