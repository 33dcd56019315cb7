"""Pages of the console at many posters over the same pages at few.

One real night of a model that is a test double; its posters and tasks are multiplied in Postgres. Each page is asked for through
HTTP, as a browser does, and the median of its answers counts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from sqlalchemy import Engine, text

from deploy.local.stack import Stack
from generator.nightly.ledger import run_id_of
from generator.nightly.plan import Scope
from generator.storage.postgres import connect
from migrations import database
from schemas.settings import load_settings
from tests.benchmarks.table import Figure, Options, say
from tests.support.night_world import NIGHT, build, night
from tests.support.web_world import OPERATOR, Web, running, web_settings

FEW, MANY = 10_000, 1_000_000
POSTERS_PER_USER = 20
ASKED = 25
RUN = run_id_of(NIGHT)
PAGES = {
    "tonight": "",
    "nights": "/nights",
    "night": f"/nights/{RUN}",
    "tasks": f"/nights/{RUN}/tasks?status=done",
    "all posters": "/posters",
    "posters of a user": "/posters?user=many-7",
    "posters of an item": "/posters?item={item}",
    "a poster": "/posters/{poster}",
    "models": "/models",
    "withdrawals": "/withdrawals",
}

_COPIES = {
    "night_tasks": "jsonb_build_object('user_id', 'many-' || u)",
    "current_posters": "jsonb_build_object('user_id', 'many-' || u)",
    "posters": "jsonb_build_object('user_id', 'many-' || u, 'poster_id', md5(own.poster_id || u))",
}
"""Table -> what is another in a copy of the first user's rows."""


def rows(options: Options) -> list[Figure]:
    """The console's figures; the same at both sizes."""
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        stack.up(services=("postgres", "s3"), tied=True)
        try:
            own = load_settings(state_dir=Path(folder), images={"allowed_schemes": ("file",)})
            settings = web_settings(own, console_per_second=1_000.0)
            database.upgrade(settings.database)
            build(settings, Path(folder) / "art", users=1, targets=POSTERS_PER_USER // 2)
            night(settings).run(Scope())
            engine = connect(settings.database)
            with running(settings) as web:
                grow(engine, FEW)
                few = {name: seconds(web, engine, path) for name, path in PAGES.items()}
                grow(engine, MANY)
                many = {name: seconds(web, engine, path) for name, path in PAGES.items()}
            engine.dispose()
        finally:
            stack.down(purge=True)
    return figures(few, many)


def grow(engine: Engine, posters: int) -> None:
    """Multiply the first user's night until there are so many posters."""
    with engine.begin() as connection:
        own = connection.execute(text("SELECT count(*) FROM posters WHERE user_id = 'u0'")).scalar_one()
        users = connection.execute(text("SELECT count(DISTINCT user_id) FROM posters")).scalar_one()
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        for table, changes in _COPIES.items():
            copy = f"""INSERT INTO {table} SELECT made.* FROM {table} own, generate_series(:first, :last) u,
                LATERAL jsonb_populate_record(own, {changes}) made WHERE own.user_id = 'u0'"""  # noqa: S608 - names of ours
            connection.execute(text(copy), {"first": users, "last": posters // own - 1})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        found = connection.execute(text("SELECT count(*) FROM posters")).scalar_one()
    say(f"{found:,} posters")


def seconds(web: Web, engine: Engine, path: str) -> float:
    """Median time of a page's answer."""
    with engine.connect() as connection:
        poster, item = connection.execute(
            text("SELECT poster_id, item_id FROM posters WHERE user_id = 'many-7' LIMIT 1")
        ).one()
    where = "/console" + path.format(poster=poster, item=item)
    found = []
    with web.client(OPERATOR) as client:
        for _ in range(ASKED):
            start = time.perf_counter()
            answer = client.get(where)
            found.append(time.perf_counter() - start)
            assert answer.status_code == 200, f"{where}: {answer.status_code} {answer.text[:500]}"
    return statistics.median(found)


def figures(few: dict[str, float], many: dict[str, float]) -> list[Figure]:
    """The slowest of all pages by ratio, and each page's ratio beside it."""
    ratios = {name: many[name] / few[name] for name in PAGES}
    worst = max(ratios, key=ratios.__getitem__)
    detail = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    return [
        Figure(
            "console",
            f"a page at {MANY:,} posters over {FEW:,}, the worst of {len(PAGES)}: {worst}",
            ratios[worst],
            "<= 2",
            f"{detail}; medians of {ASKED} answers each",
        )
    ]
