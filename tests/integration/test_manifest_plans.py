"""A page of the manifest's rows is read through indexes, wherever it is."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine, text

from generator.nightly.ledger import Ledger
from generator.nightly.manifest_rows import _ROWS, ManifestCounts, manifest_pages

pytestmark = pytest.mark.integration
USERS = 5000
FILL = (
    "INSERT INTO night_runs (run_id, logical_date, status, model_version, fencing_token) "
    "VALUES ('night-20260301', '2026-03-01', 'published', 'nano-1', 1)",
    "INSERT INTO items (item_id, title) SELECT 'm' || m, 't' FROM generate_series(0, 999) m",
    "INSERT INTO current_posters SELECT 'u' || u, 'm' || (u * 7 + t * 11) % 1000, 'f', 'nano-1', 'w', 'night-20260301', "
    "'2026-03-01' FROM generate_series(1, :users) u, generate_series(0, 3) t",
    "INSERT INTO posters (poster_id, run_id, user_id, item_id, variant, input_fingerprint, model_version, weights, alpha, seed, "
    "tokens, art_key, art_sha256, image_key, image_sha256, width, height, look, cs, cis_reference, cis_history, score, "
    "propensity, safety) "
    "SELECT md5(user_id || item_id || v || f), run_id, user_id, item_id, v, f, model_version, weights, 0, 1, "
    "'{1,2,3,4,5,6,7,8}', 'art', 'sha', 'posters/' || v, 'sha', 400, 600, 'look', 1, 1, 1, 1, 0.5, 'unchecked' "
    "FROM current_posters, generate_series(0, 1) v, (VALUES ('f'), ('earlier'), ('later')) AS old (f)",
    "INSERT INTO withdrawals (kind, subject, reason, actor) "
    "SELECT kind, 'x' || n, 'r', 'a' FROM generate_series(1, 300) n, (VALUES ('poster'), ('picture'), ('user')) AS k (kind)",
    "ANALYZE",
)


@pytest.fixture
def filled(engine: Engine) -> Engine:
    """Posters of three fingerprints, of which one is current."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        for statement in FILL:
            connection.execute(text(statement), {"users": USERS})
    return engine


def plan(connection: Connection, after: tuple[str, str], until: tuple[str, str]) -> str:
    bounds = {
        "after_user": after[0],
        "after_item": after[1],
        "until_user": until[0],
        "until_item": until[1],
        "is_last": False,
    }
    lines = connection.execute(text(f"EXPLAIN (ANALYZE, TIMING OFF) {_ROWS.text}"), bounds).scalars()
    return "\n".join(lines)


def test_a_page_reads_its_own_rows(filled: Engine) -> None:
    with filled.connect() as connection:
        names = "SELECT user_id, item_id FROM current_posters ORDER BY user_id, item_id OFFSET :n LIMIT 1"
        after, until = (tuple(connection.execute(text(names), {"n": USERS * 2 + n}).one()) for n in (0, 800))
        found = plan(connection, after, until)
    assert "Seq Scan on posters" not in found
    assert "Seq Scan on current_posters" not in found
    assert "ix_posters_user_id_item_id" in found
    assert "pk_current_posters" in found


def test_every_row_comes_once_whatever_the_pages(filled: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.nightly.manifest_rows.PAGE_PAIRS", 777)
    counts, seen = ManifestCounts(), set[tuple[str, str, int]]()
    with Ledger(filled).reading() as session:
        for page in manifest_pages(session, Ledger(filled), "night-20260301", 0.5, counts):
            names = ("user_id", "item_id", "variant")
            seen |= set(zip(*(page[name].to_pylist() for name in names), strict=True))
    assert len(seen) == counts.drawn == USERS * 8
