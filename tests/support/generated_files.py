"""Files of interactions as people have them, by a seed: layouts, spellings and faults mixed."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consumers.files.layout import ReadOptions

FIELDS = ("user_id", "item_id", "kind", "occurred_at")
TIMES = (
    "2026-11-01T10:00:00Z",
    "2026-11-01 10:00:00+00",
    "2026-11-01 10:00:00.123456+05:30",
    "2026-11-01 10:00:00.5 UTC",
    "1777629600",
    "1777629600123",
    "1777629600123456",
)
NO_TIMES = ("soon", "2026-13-45T10:00:00Z", "2026-11-01 10:00:00", "99999999999999999999")
Row = dict[str, Any]


@dataclass
class Generated:
    """A file, how it is read, and what must become of its rows."""

    name: str
    content: bytes
    options: ReadOptions
    good: list[tuple[str, str]] = field(default_factory=list)
    """User and item of each row that is sent; a row that is there twice is sent twice."""
    bad: list[int] = field(default_factory=list)
    """Lines (of a JSON array rows) that are not sent."""

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        path.write_bytes(self.content)
        return path


def generated(seed: int) -> Generated:
    """The file of a seed."""
    dice = random.Random(f"file {seed}")
    make = dice.choice([_table, _table, _table, _json_lines, _json_array])
    made = make(dice, seed)
    if dice.random() < 0.3:
        made.content, made.name = gzip.compress(made.content), f"{made.name}.gz"
    return made


def _row(dice: random.Random, seed: int, number: int) -> Row:
    item = dice.choice([f"i{dice.randint(1, 9)}", f"{dice.randint(1, 9)}.0", "0108775015", "ü|é"])
    kind = dice.choice(["click", "Play", "view"])
    return {"user_id": f"ü{seed}-{number}", "item_id": item, "kind": kind, "occurred_at": dice.choice(TIMES)}


def _spoilt(dice: random.Random, row: Row) -> Row:
    """A row with one field that is none."""
    if dice.random() < 0.5:
        return row | {"occurred_at": dice.choice(NO_TIMES)}
    name = dice.choice(FIELDS)
    return row | {name: "" if name == "kind" else dice.choice(["", "  "])}


def _table(dice: random.Random, seed: int) -> Generated:
    delimiter = dice.choice([",", ";", "\t", "|", "::"])
    encoding = dice.choice(["utf-8", "utf-8-sig", "latin-1", "utf-16"])
    header, end = dice.random() < 0.7, dice.choice(["\n", "\r\n"])
    numbered = {str(place): name for place, name in enumerate(FIELDS, 1)}
    options = ReadOptions(names={} if header else numbered, delimiter=delimiter, encoding=encoding, header=header)
    made = Generated(f"{seed}.csv", b"", options)
    lines = [delimiter.join(FIELDS)] if header else []
    for number in range(dice.randint(5, 60)):
        row = _row(dice, seed, number)
        cells, good = _cells(dice, row, delimiter, whole=number == 0)
        for _ in range(2 if good and dice.random() < 0.05 else 1):
            lines.append(cells)
            if good:
                made.good.append((row["user_id"], row["item_id"]))
            else:
                made.bad.append(len(lines))
        if dice.random() < 0.05:
            lines.append("")
    made.content = (end.join(lines) + (end if dice.random() < 0.8 else "")).encode(encoding)
    return made


def _cells(dice: random.Random, row: Row, delimiter: str, *, whole: bool) -> tuple[str, bool]:
    """A line of a table, and whether it is good; `whole`: it shows how many columns there are."""
    quoted = delimiter != "::"
    if delimiter in row["item_id"]:
        row["item_id"] = "i0"
    faults: list[str] = ["field", *([] if whole else ["short", "long", *(["quote"] if quoted else [])])]
    fault = dice.choice(faults) if dice.random() < 0.4 else ""
    cells = list((_spoilt(dice, row) if fault == "field" else row).values())
    if fault == "short":
        cells.pop()
    elif fault == "long":
        cells.append("more")
    elif fault == "quote":
        cells[1] = f'"{cells[1]}'
    elif quoted and not fault and dice.random() < 0.3:
        row["user_id"] += f'{delimiter}"x"'
        cells[0] = '"' + row["user_id"].replace('"', '""') + '"'
    elif dice.random() < 0.2:
        cells = [f" {cell} " for cell in cells]
    return delimiter.join(cells), not fault


def _json_row(dice: random.Random, row: Row) -> tuple[str, bool]:
    faults: list[Callable[[], Any]] = [
        lambda: _spoilt(dice, row),
        lambda: row | {"user_id": " u "},
        lambda: row | {"item_id": dice.choice([None, 1.5, True, ["i"]])},
        lambda: row | {"occurred_at": dice.choice([1e300, -1e300, 10**400, float("inf"), float("nan")])},
        lambda: [row],
    ]
    if dice.random() < 0.4:
        return json.dumps(dice.choice(faults)(), ensure_ascii=dice.random() < 0.5), False
    said = dict(row)
    if dice.random() < 0.3:
        row["item_id"] = str(number := dice.randint(1, 9))
        said["item_id"] = number
    if said["occurred_at"].isdigit() and dice.random() < 0.5:
        said["occurred_at"] = int(said["occurred_at"])
    said |= dice.choice([{}, {"context": None}, {"context": {"page": "ü"}}, {"event_id": None}, {"unknown": 1}])
    return json.dumps(said, ensure_ascii=dice.random() < 0.5), True


def _json_lines(dice: random.Random, seed: int) -> Generated:
    made = Generated(f"{seed}.jsonl", b"", ReadOptions())
    lines: list[str] = []
    for number in range(dice.randint(5, 60)):
        row = _row(dice, seed, number)
        text, good = _json_row(dice, row)
        if number and dice.random() < 0.05:
            text, good = text[:-1], False
        lines.append(text)
        if good:
            made.good.append((row["user_id"], row["item_id"]))
        else:
            made.bad.append(len(lines))
        if dice.random() < 0.05:
            lines.append("")
    made.content = "\n".join(lines).encode()
    return made


def _json_array(dice: random.Random, seed: int) -> Generated:
    made = Generated(f"{seed}.json", b"", ReadOptions())
    texts = []
    for number in range(1, dice.randint(5, 60)):
        row = _row(dice, seed, number)
        text, good = _json_row(dice, row)
        texts.append(text)
        if good:
            made.good.append((row["user_id"], row["item_id"]))
        else:
            made.bad.append(number)
    made.content = f"[{','.join(texts)}]".encode()
    return made
