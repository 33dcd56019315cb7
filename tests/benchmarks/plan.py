"""The night's plan at scale, and what a second night costs.

Users are made up in Postgres and pictures count as looked at, so that planning is all that is measured; each measurement is a
process of its own, so that memory is its own as well. Processor time is the process's and Postgres's together. The nights with
nothing new are whole nights for fewer users, of a model that is a test double.

`python -m tests.benchmarks.plan [--users N]` prints these rows alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import Engine, text

from deploy.local.stack import Stack
from generator.nightly.frozen_prompt import ServedVersions, drawing_settings
from generator.nightly.images import CatalogImages
from generator.nightly.ledger import Ledger, run_id_of
from generator.nightly.plan import Planner, Scope
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.postgres import connect
from migrations import database
from schemas.settings import Settings, load_settings
from tests.benchmarks.table import Figure, Options, say, table
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, build, night

USERS, FULL_USERS = 20_000, 1_000_000
NIGHT_USERS = 80
"""Users of the whole nights: as many as the demo draws for."""
TARGETS = 4
ENTRIES = 50
ITEMS = 5_000
SECOND = NIGHT + timedelta(days=1)
_TICKS = os.sysconf("SC_CLK_TCK")

_FILL = (
    """INSERT INTO items (item_id, title, description, image_uri)
       SELECT 'm' || n, 'Film ' || n, 'What happens in film ' || n || ': ' || repeat(md5(n::text), 6),
              's3://' || :bucket || '/catalog/' || encode(sha256(n::text::bytea), 'hex') || '.png'
       FROM generate_series(0, :items - 1) n""",
    """INSERT INTO catalog_images (uri, sha256, checked_at, changed_at)
       SELECT image_uri, split_part(split_part(image_uri, '/', 5), '.', 1), now(), now() FROM items""",
    """INSERT INTO recommendations (user_id, item_ids, occurred_at)
       SELECT 'user-' || lpad(u::text, 8, '0'),
              ARRAY(SELECT 'm' || (u * 31 + t * 977) % :items FROM generate_series(0, 19) t), '2026-02-01Z'
       FROM generate_series(:first, :last) u""",
    """INSERT INTO user_histories (user_id, entries, fingerprint, interaction_count, last_occurred_at)
       SELECT 'user-' || lpad(u::text, 8, '0'),
              (SELECT jsonb_agg(jsonb_build_object('event_id', md5(u || ' ' || e)::uuid, 'item_id', 'm' || (u * 7 + e * 131) % :items,
                                                   'kind', 'click', 'occurred_at', timestamptz '2026-02-01Z' - e * interval '7 hours'))
               FROM generate_series(0, :entries - 1) e),
              md5(u::text), :entries, '2026-02-01Z'
       FROM generate_series(:first, :last) u""",
)
_AS_PUBLISHED = (
    "UPDATE night_runs SET status = 'published'",
    "UPDATE planned_users SET run_id = NULL",
)
_SCAN = "SELECT user_id, entries FROM user_histories ORDER BY user_id"
FILLED_AT_ONCE = 20_000


@dataclass(frozen=True)
class Cost:
    """What a measurement took."""

    processor: float
    """Seconds of the process and of Postgres."""
    own: float
    """Seconds of the process."""
    wall: float
    peak: int
    """Bytes of memory at most."""
    count: int
    """Users scanned, or tasks planned."""


def rows(options: Options) -> list[Figure]:
    """All figures of the plan."""
    return measured(FULL_USERS if options.full else USERS)


def measured(users: int) -> list[Figure]:
    """The same for a number of users."""
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        stack.up(services=("postgres", "s3"), tied=True)
        try:
            settings = load_settings(state_dir=Path(folder))
            small = at_scale(settings, users // 10)
            large = at_scale(settings, users)
            return [*plans(users, small, large), *second_nights(settings, Path(folder))]
        finally:
            stack.down(purge=True)


def plans(users: int, small: dict[str, Cost], large: dict[str, Cost]) -> list[Figure]:
    """Figures of the first plan and of one with nothing new."""
    scan, dry_run, first, again = large["scan"], large["dry"], large["plan"], large["again"]
    tasks = first.count
    growth = math.log10(first.processor / small["plan"].processor)
    size = f"{users:,} users, {tasks:,} tasks, {ENTRIES} items in each history"
    detail = (
        f"{size}; {first.processor:.1f} s over {scan.processor:.1f} s of processor time, Postgres included, its rows written; "
        f"{first.wall:.1f} s over {scan.wall:.1f} s by the clock"
    )
    per_pair = f"{1e6 * again.processor / tasks:.1f} us over {1e6 * first.processor / tasks:.0f} us"
    peaks = f"{first.peak / 2**20:.0f} MiB over {small['plan'].peak / 2**20:.0f} MiB"
    return [
        Figure(
            "plan", "plan over one scan that decodes the same JSON", first.processor / scan.processor, "<= 3", detail
        ),
        Figure(
            "plan",
            "the same without its rows, as a dry run plans",
            dry_run.processor / scan.processor,
            "",
            f"{dry_run.processor:.1f} s over {scan.processor:.1f} s",
        ),
        Figure("plan", "growth exponent of the plan", growth, "<= 1.05", f"{users // 10:,} to {users:,} users"),
        Figure("plan", "peak memory at N users over N/10", first.peak / small["plan"].peak, "<= 1.2", peaks),
        Figure(
            "plan",
            "a plan with nothing new, per pair, over the first plan's",
            again.processor / first.processor,
            "<= 0.1",
            per_pair,
        ),
    ]


def at_scale(settings: Settings, users: int) -> dict[str, Cost]:
    """A scan, a first plan and one with nothing new, of a database with so many users."""
    name = f"plan_{users}"
    url = create(settings, name)
    own = with_database(settings, url)
    engine = connect(own.database)
    start = time.monotonic()
    fill(engine, own, users)
    say(f"  {users:,} users made in {time.monotonic() - start:.0f} s")
    found = {}
    for what, day in (("scan", NIGHT), ("dry", NIGHT), ("plan", NIGHT), ("again", SECOND)):
        found[what] = child(engine, own, what, day)
        cost = found[what]
        say(
            f"  {what}: {cost.processor:.1f} s, {cost.wall:.1f} s by the clock, {cost.peak / 2**20:.0f} MiB, {cost.count:,}"
        )
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            for statement in _AS_PUBLISHED:
                connection.execute(text(statement))
        vacuum(engine)
    engine.dispose()
    with connect(settings.database).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    return found


def create(settings: Settings, name: str) -> str:
    """A migrated database; returns its URL."""
    with connect(settings.database).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = settings.database.url.get_secret_value().rpartition("/")[0] + f"/{name}"
    database.upgrade(with_database(settings, url).database)
    return url


def with_database(settings: Settings, url: str) -> Settings:
    """The settings with another database."""
    return settings.model_copy(update={"database": settings.database.model_copy(update={"url": SecretStr(url)})})


def fill(engine: Engine, settings: Settings, users: int) -> None:
    """Items that everybody shares, and users with histories and recommendations."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        for statement in _FILL[:2]:
            connection.execute(text(statement), {"items": ITEMS, "bucket": settings.s3.bucket})
    for first in range(0, users, FILLED_AT_ONCE):
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            values = {
                "items": ITEMS,
                "entries": ENTRIES,
                "first": first,
                "last": min(users, first + FILLED_AT_ONCE) - 1,
            }
            for statement in _FILL[2:]:
                connection.execute(text(statement), values)
    vacuum(engine)


def vacuum(engine: Engine) -> None:
    """As autovacuum would, but now and not in the middle of a measurement."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM (ANALYZE)"))
        connection.execute(text("CHECKPOINT"))


def child(engine: Engine, settings: Settings, what: str, day: date) -> Cost:
    """Measure in a process of its own."""
    with engine.connect() as connection:
        postmaster = parent(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
    before = tree_seconds(postmaster)
    url = settings.database.url.get_secret_value()
    command = [sys.executable, "-m", "tests.benchmarks.plan", "--child", what, "--url", url, "--day", day.isoformat()]
    environment = {**os.environ, "PIGEON_STATE_DIR": str(settings.state_dir)}
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    server = tree_seconds(postmaster) - before
    return Cost(processor=found["own"] + server, **found)


def parent(pid: int) -> int:
    """The process that started another."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def tree_seconds(pid: int) -> float:
    """Processor time of a process, of its children, and of those of them that have ended."""
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if path.parent.name == str(pid):
            total += sum(int(word) for word in words[11:15])
        elif int(words[1]) == pid:
            total += sum(int(word) for word in words[11:13])
    return total / _TICKS


def work(what: str, url: str, day: date) -> None:
    """The body of a child."""
    settings = load_settings(database={"url": url})
    engine = connect(settings.database)
    with engine.connect() as connection:  # what starting costs is no part of it
        connection.execute(text("SELECT 1"))
    own, wall = time.process_time(), time.perf_counter()
    works = {"scan": lambda: scan(engine), "dry": lambda: dry(engine, settings, day)}
    count = works.get(what, lambda: plan(engine, settings, day))()
    cost = {
        "own": time.process_time() - own,
        "wall": time.perf_counter() - wall,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "count": count,
    }
    engine.dispose()
    sys.stdout.write(json.dumps(cost))


def scan(engine: Engine) -> int:
    """Read every history, as JSON that is decoded; returns how many."""
    raw: Any = engine.raw_connection()
    with raw.cursor() as setting:
        setting.execute("SET statement_timeout = 0")
    users = 0
    with raw.cursor(name="scan") as cursor:
        cursor.itersize = 500
        cursor.execute(_SCAN)
        for _, entries in cursor:
            assert len(entries) == ENTRIES
            users += 1
    raw.close()
    return users


def plan(engine: Engine, settings: Settings, day: date) -> int:
    """Plan a night as the night does, its rows written; returns its tasks, or its unchanged pairs."""
    served = ServedVersions.of(FakePigeon())
    images = CatalogImages(engine, settings)
    with lead(engine, "night") as lease:
        ledger = Ledger(engine, lease)
        with ledger.reading() as session:
            planner = Planner(session, settings, images, served, day)
            recipe = {"recipe": drawing_settings(settings.night, served.drawing)}
            totals = ledger.save_plan(day, planner.drawers.champion.version, recipe, planner.chunks(Scope()))
        counts = ledger.count_skips(run_id_of(day))
    assert (totals.tasks == 0) is (day == SECOND), "nothing is new on the second day"
    return totals.tasks or counts["unchanged"]


def dry(engine: Engine, settings: Settings, day: date) -> int:
    """Plan a night as `--dry-run` does, without writing rows; returns its tasks."""
    images = CatalogImages(engine, settings)
    with Ledger(engine).reading() as session:
        planner = Planner(session, settings, images, ServedVersions.of(FakePigeon()), day)
        return sum(len(chunk.tasks) for chunk in planner.chunks(Scope()))


# --- whole nights ---


def second_nights(settings: Settings, folder: Path) -> list[Figure]:
    """Processor time of nights with nothing new, without that of servers."""
    bare_url, url = create(settings, "bare"), create(settings, "nights")
    Store(settings.s3).s3.create_bucket(Bucket="bench-nights")
    own = with_database(settings, url)
    build(own, folder / "art", users=NIGHT_USERS, targets=TARGETS)
    engine = connect(own.database)
    bare = night_child(bare_url, folder, NIGHT)
    night_child(url, folder, NIGHT)
    nothing = min(night_child(url, folder, SECOND + timedelta(days=n)) for n in range(3))
    with engine.connect() as connection:
        runs = connection.execute(text("SELECT count(DISTINCT run_id) FROM night_tasks")).scalar_one()
    engine.dispose()
    assert runs == 1
    size = f"{NIGHT_USERS} users, {NIGHT_USERS * TARGETS} pairs; the night's process without the model"
    return [
        Figure(
            "plan",
            "a night with nothing new over a bare start",
            nothing / bare,
            "<= 3",
            f"{nothing:.2f} s over {bare:.2f} s; {size}",
        )
    ]


def night_child(url: str, folder: Path, day: date) -> float:
    """Processor seconds of a process that runs a night."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {
        **os.environ,
        "PIGEON_STATE_DIR": str(folder),
        "PIGEON_S3__BUCKET": "bench-nights",
        "PIGEON_IMAGES__ALLOWED_SCHEMES": '["file"]',
    }
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.plan",
        "--child",
        "night",
        "--url",
        url,
        "--day",
        day.isoformat(),
    ]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.plan", description=__doc__)
    parser.add_argument("--users", type=int, default=USERS, help="users of the large plan (default: %(default)s)")
    parser.add_argument("--child", choices=("scan", "dry", "plan", "again", "night"), help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--day", type=date.fromisoformat, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child == "night":
        night(load_settings(database={"url": given.url}), on=given.day).run(Scope())
    elif given.child:
        work(given.child, given.url, given.day)
    else:
        say(table(measured(given.users)))


if __name__ == "__main__":
    main()
