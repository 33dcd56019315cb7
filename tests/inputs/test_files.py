"""INPUTS 6 to 12: files as people have them, and what they are told of them."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consumers import dead_letters
from consumers.files import imports, verdict
from consumers.files.layout import ReadOptions
from schemas.errors import InputError, PartialFailure
from schemas.events import CATALOG, INTERACTIONS, Event
from schemas.settings import Settings
from tests.support.consume_world import consume, query
from tests.support.generated_files import generated

CLICK = '{"user_id": "u1", "item_id": "i1", "kind": "click", "occurred_at": "2026-11-01T00:00:00Z"}'
HEADER = "user_id,item_id,kind,occurred_at\n"
GOOD = "u{0},i{0},click,2026-11-01T00:00:00Z\n"


def interactions(looked: imports.Looked, report: imports.Report) -> Iterator[tuple[int, Any]]:
    return imports._source(Settings(), INTERACTIONS, looked, None, report)


def taken(path: Path, topic: str = INTERACTIONS, **options: Any) -> tuple[list[Any], imports.Report]:
    """The events that a file is taken for, and what is said of the rest."""
    report = imports.Report()
    events: list[Event] = []
    for _, event in imports._source(Settings(), topic, imports.look(topic, path, ReadOptions(**options)), None, report):
        report.sent += 1
        events.append(event)
    return events, report


def file(folder: Path, content: str | bytes, name: str = "file.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


MOVIELENS = {"userId": "user_id", "movieId": "item_id", "timestamp": "occurred_at"}
NUMBERED = {"1": "user_id", "2": "item_id", "4": "occurred_at"}
DOWNLOADED = [
    ("userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n", {"names": MOVIELENS}),
    ("196\t242\t3\t1260759144\n", {"names": NUMBERED, "header": False}),
    ("1::1193::5::1260759144\n2::3::5::1260759144\n", {"names": NUMBERED, "header": False}),
    ("1|1193|5|1260759144\n", {"names": NUMBERED, "header": False}),
    ("userId;movieId;rating;timestamp\n1;31;2,5;1260759144\n", {"names": MOVIELENS}),
    (
        "timestamp,visitorid,event,itemid,transactionid\n1260759144117,257597,view,355908,\n",
        {"names": {"visitorid": "user_id", "itemid": "item_id", "timestamp": "occurred_at"}},
    ),
    (
        "1,2009-12-14T02:52:24.277Z,214536502,0\n",
        {"names": {"1": "user_id", "3": "item_id", "2": "occurred_at"}, "header": False},
    ),
]


@pytest.mark.parametrize(("content", "options"), DOWNLOADED, ids=[text[:18] for text, _ in DOWNLOADED])
def test_a_file_as_downloaded_is_taken_with_a_line_of_options(
    tmp_path: Path, content: str, options: dict[str, Any]
) -> None:
    """INPUTS 6: MovieLens in three forms, RetailRocket, Yoochoose."""
    for packed in (False, True):
        data = gzip.compress(content.encode()) if packed else content.encode()
        events, report = taken(file(tmp_path, data, "f.gz"), **options, constants={"kind": "click"})
        assert not report.skipped, report.first
        assert events[0].occurred_at.isoformat().startswith("2009-12-14T02:52:24")
        assert events[0].user_id in ("1", "196", "257597")


def test_latin_1_is_one_error_with_the_option_that_mends_it(tmp_path: Path) -> None:
    """INPUTS 6: u.item."""
    path = file(tmp_path, "1|Toy Story (1995)||x\n2|Café (1995)||x\n".encode("latin-1"), "u.item")
    with pytest.raises(InputError, match=r"line 2 is not UTF-8; .* --encoding latin-1"):
        imports.look(CATALOG, path)
    options = {"names": {"1": "item_id", "2": "title"}, "header": False, "encoding": "latin-1"}
    events, _ = taken(path, CATALOG, **options, constants={"image_uri": "https://x/{1}.png"})
    assert [event.title for event in events] == ["Toy Story (1995)", "Café (1995)"]
    assert events[1].image_uri == "https://x/2.png"


def test_a_byte_of_another_encoding_far_down_costs_its_row_only(tmp_path: Path) -> None:
    rows = "".join(f"i{number},A title that takes room,https://x/a.png\n" for number in range(9_000))
    content = ("item_id,title,image_uri\n" + rows).encode() + b"last,Caf\xe9,https://x/a.png\n"
    events, report = taken(file(tmp_path, content), CATALOG)
    assert len(events) == 9_000
    assert report.first == [(9_002, "title: has bytes that are not utf-8-sig; say --encoding, such as latin-1")]


def test_json_in_an_array_and_parquet_are_rows_as_well(tmp_path: Path) -> None:
    rows = [
        {"user_id": 7, "item_id": 108775015, "kind": "Play", "occurred_at": "2026-11-01 10:00:00+00", "context": None}
    ]
    assert taken(file(tmp_path, json.dumps(rows), "a.json"))[0][0].item_id == "108775015"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert taken(tmp_path / "a.parquet")[0][0].user_id == "7"


def test_a_header_of_other_names_is_one_error_that_says_which_is_which(tmp_path: Path) -> None:
    """INPUTS 6: thousands of lines, one error each, before."""
    path = file(tmp_path, "userId,movieId,rating,timestamp\n" + "1,31,2.5,1260759144\n" * 5_000)
    with pytest.raises(InputError) as caught:
        imports.look(INTERACTIONS, path)
    assert "--map 'userId=user_id' --map 'movieId=item_id' --map 'timestamp=occurred_at' --set 'kind=...'" in str(
        caught.value
    )
    with pytest.raises(InputError, match=r"looks like data: add --no-header"):
        imports.look(INTERACTIONS, file(tmp_path, "196\t242\t3\t881250949\n"))


def test_no_file_fails_a_million_times_for_one_reason(tmp_path: Path) -> None:
    path = file(tmp_path, HEADER + "u1,i1,click,yesterday\n" * 3_000)
    with pytest.raises(InputError, match=r"first 1000 rows are all refused, .*occurred_at: "):
        taken(path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"names": {"userid": "user_id"}}, "no such column, but user_id"),
        ({"names": {"user_id": "user"}}, "there is no field user;"),
        ({"time_zone": "Mars"}, "--time-zone Mars"),
        ({"keep": "rating"}, "--keep rating"),
        ({"keep": "rating>=4"}, "no column rating"),
        ({"encoding": "martian"}, "--encoding martian"),
    ],
)
def test_an_option_that_means_nothing_here_is_named(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        imports.look(INTERACTIONS, file(tmp_path, HEADER + GOOD.format(1)), ReadOptions(**options))


def test_nothing_imported_is_no_success(tmp_path: Path) -> None:
    """INPUTS 7."""
    path = file(tmp_path, HEADER + "u1,i1,click,\n" * 3)
    _, report = taken(path)
    with pytest.raises(InputError, match=r"none of its 3 rows is good; the first: occurred_at: is missing"):
        verdict.judge(report, path, 0.5)
    empty = file(tmp_path, HEADER)
    _, report = taken(empty)
    verdict.judge(report, empty, 0.0)
    assert report.line() == "0 rows; 0 skipped"
    _, report = taken(file(tmp_path, HEADER + GOOD.format(1) * 999 + "u1,i1,click,\n"))
    verdict.judge(report, path, 0.001)
    with pytest.raises(PartialFailure, match="1 of 1000 rows skipped"):
        verdict.judge(report, path, 0.0005)


def test_rows_that_a_condition_leaves_out_are_no_failure(tmp_path: Path) -> None:
    content = "user_id,item_id,occurred_at,rating\nu,i,1260759144,3.5\nu,j,1260759144,4\nu,k,1260759144,5\n"
    events, report = taken(file(tmp_path, content), keep="rating>=4", constants={"kind": "like"})
    assert [event.item_id for event in events] == ["j", "k"]
    assert (report.left_out, report.bad) == (1, 0)


def test_kinds_that_enter_no_history_are_named_and_counted(tmp_path: Path) -> None:
    """INPUTS 8."""
    rows = "u1,i1,view,2026-11-01T00:00:00Z\n" * 50 + "u1,i1,CLICK,2026-11-01T00:00:00Z\n"
    _, report = taken(file(tmp_path, HEADER + rows))
    assert report.warned == {"kind 'view' enters no history": 50}
    assert "consumer.positive_kinds has click, like, play, purchase" in report.warnings[0][1]
    assert Settings(consumer={"positive_kinds": ["Like"]}).consumer.positive_kinds == ("like",)


def test_an_unclosed_quote_costs_its_own_line(tmp_path: Path) -> None:
    """INPUTS 9."""
    rows = GOOD.format(1) + 'u2,"i2,click,2026-11-01T00:00:00Z\n' + GOOD.format(3) + GOOD.format(4)
    for tail in ("", 'u5,"i5",click,2026-11-01T00:00:00Z\n'):
        events, report = taken(file(tmp_path, HEADER + rows + tail))
        assert [event.user_id for event in events] == ["u1", "u3", "u4", *(["u5"] if tail else [])]
        ((line, problem),) = report.first
        assert line == 3
        assert "a quote is opened and not closed here" in problem
        assert f"the {3 if tail else 2} lines after it are read again" in problem
    content = 'item_id,title,description,image_uri\ni1,One,"two\nlines",https://x/a.png\ni2,,x,https://x/a.png\n'
    events, report = taken(file(tmp_path, content), CATALOG)
    assert events[0].description == "two\nlines"
    assert report.first[0][0] == 4


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-11-01 10:00:00+00", "2026-11-01T10:00:00+00:00"),
        ("2026-11-01 10:00:00.123456+05:30", "2026-11-01T04:30:00.123456+00:00"),
        ("2026-11-01 10:00:00 UTC", "2026-11-01T10:00:00+00:00"),
        ("2026-11-01T10:00:00.123456789Z", "2026-11-01T10:00:00.123456+00:00"),
        ("1777629600", "2026-05-01T10:00:00+00:00"),
        ("1777629600000", "2026-05-01T10:00:00+00:00"),
        ("1777629600000000", "2026-05-01T10:00:00+00:00"),
    ],
)
def test_times_as_databases_write_them_are_taken(tmp_path: Path, text: str, utc: str) -> None:
    """INPUTS 10."""
    events, report = taken(file(tmp_path, f"{HEADER}u1,i1,click,{text}\n"))
    assert report.first == []
    assert events[0].occurred_at.astimezone(tz=__import__("datetime").UTC).isoformat() == utc


def test_a_time_without_a_zone_needs_one_from_its_owner(tmp_path: Path) -> None:
    path = file(tmp_path, HEADER + "u1,i1,click,2026-07-01 10:00:00\n")
    assert taken(path)[1].first[0][1] == "occurred_at: has no time zone; add --time-zone, such as --time-zone UTC"
    assert taken(path, time_zone="Europe/Berlin")[0][0].occurred_at.isoformat() == "2026-07-01T10:00:00+02:00"


def test_ids_are_trimmed_and_what_a_spreadsheet_made_of_them_is_told(tmp_path: Path) -> None:
    """INPUTS 11."""
    events, report = taken(file(tmp_path, HEADER + " u1 , 1.0 ,click,2026-11-01T00:00:00Z\n"))
    assert (events[0].user_id, events[0].item_id) == ("u1", "1.0")
    assert "looks like a number that a spreadsheet wrote" in report.warnings[0][1]
    rows = CLICK.replace('"u1"', '" u1"') + "\n" + CLICK.replace('"i1"', '"i1\\n"')
    _, report = taken(file(tmp_path, rows, "a.jsonl"))
    assert [problem.partition(":")[0] for _, problem in report.first] == ["user_id", "item_id"]
    assert "blanks or line ends around it" in report.first[0][1]


def test_words_for_nothing_doubles_and_odd_lists_are_counted_and_told(tmp_path: Path) -> None:
    """INPUTS 12."""
    rows = 'i1,nan,"[""A""]",https://x/a.png\ni1,Two,"A, B",https://x/a.png\ni2,NULL,A|B,https://x/a.png\n'
    events, report = taken(file(tmp_path, "item_id,title,genres,image_uri\n" + rows), CATALOG)
    assert [event.genres for event in events] == [["A"], ["A", "B"], ["A", "B"]]
    assert report.warned == {"title to look at": 2, "genres to look at": 2, "item_id again": 1}
    with pytest.raises(InputError, match="two columns are called title"):
        imports.look(CATALOG, file(tmp_path, "item_id,title,title,image_uri\n"))
    with pytest.raises(InputError, match="two columns give title"):
        imports.look(CATALOG, file(tmp_path, "item_id,title,name,image_uri\n"), ReadOptions(names={"name": "title"}))


CASES = int(os.environ.get("FILE_CASES", "10"))
"""Generated files that go all the way; `make faults` takes 200."""


@pytest.mark.parametrize("seed", range(200))
def test_every_row_of_a_generated_file_is_sent_or_counted_once(tmp_path: Path, seed: int) -> None:
    """INPUTS 6, 9 to 12: delimiters, encodings, quotes, times, ids and nulls mixed; true lines."""
    made = generated(seed)
    looked, report = imports.look(INTERACTIONS, made.write(tmp_path), made.options), imports.Report()
    sent = [(event.user_id, event.item_id) for _, event in interactions(looked, report)]
    assert sent == made.good, report.first
    assert report.bad == len(made.bad), report.first
    assert [line for line, _ in report.first] == made.bad[: imports.SAMPLES]


@pytest.mark.integration
def test_every_row_of_generated_files_is_stored_or_counted(settings: Settings, tmp_path: Path) -> None:
    """INPUTS 6, 9 to 12: the same files by way of Kafka to Postgres."""
    made = [generated(seed) for seed in range(CASES)]
    reports = [
        imports.run(settings, INTERACTIONS, imports.look(INTERACTIONS, one.write(tmp_path), one.options))
        for one in made
    ]
    assert [(one.sent, one.bad) for one in reports] == [(len(one.good), len(one.bad)) for one in made]
    summary = consume(settings)
    good = [pair for one in made for pair in one.good]
    assert (summary.records, summary.poison) == (len(good), 0)
    assert summary.written.duplicates == len(good) - len(set(good))
    assert sorted(query(settings, "SELECT user_id, item_id FROM interactions")) == sorted(set(good))
    assert dead_letters.read(settings) == []
