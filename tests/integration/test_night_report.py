"""The night's report on real Postgres and S3: what it shows, and that sessions add up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from generator.nightly.ledger import Ledger
from generator.nightly.plan import Scope
from generator.nightly.report import write
from generator.nightly.report.samples import read_samples
from generator.nightly.run import Interrupted
from generator.nightly.sessions import sessions_of
from generator.nightly.status import status_of, words
from generator.safety.judge import SafetyCheck
from generator.serving.api import AnswerRequest, InferenceRejected, PictureRequest
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.errors import PartialFailure
from schemas.settings import Settings
from tests.support.fake_judge import FakeJudge
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, build, night, reader, set_user

pytestmark = pytest.mark.integration
TOMORROW = date(2026, 3, 2)


def page(settings: Settings, day: date = NIGHT) -> str:
    stored = Store(settings.s3).get(f"manifests/{day}/night-{day:%Y%m%d}.report.html")
    assert stored
    return stored.body.decode()


def section(html: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', html, re.DOTALL)
    assert found, name
    return found[0]


def test_the_report_stands_alone(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    night(settings).run(Scope())
    html = page(settings)
    assert section(html, "posters").count("data:image/webp;base64,") == 4
    best = section(html, "best")
    posters = len({row["picture_key"] for row in reader(settings).rows().to_pylist()})
    assert best.count("<figure>") == 2 * posters, "the best and the worst, none twice the same picture"
    assert best.count("data:image/webp;base64,") == 2 * posters * 6, "beside each its reference and four liked items"
    assert section(html, "scores").count("<svg") == 2
    assert "Film of item8" in html
    assert "What drawn posters are worth cannot be told: 0 showings with 0 clicks of the control group" in html
    # Nothing is fetched when it is opened.
    assert not re.search(r"""(src|href)=["']?(http|//)|url\(|<script|<link|@import""", html)


def test_the_report_is_saved_as_a_file(
    settings: Settings, tmp_path: Path, pigeon: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    target = tmp_path / "report.html"
    ended = pigeon("night", "report", "--out", str(target))
    assert (ended.returncode, ended.stderr) == (2, "pigeon: no night yet: `pigeon night run` starts one\n")
    build(settings, tmp_path / "art", users=1, targets=1)
    night(settings).run(Scope())
    ended = pigeon("night", "report", "--out", str(target))
    assert ended.returncode == 0, ended.stderr
    assert target.read_text() == page(settings)
    ended = pigeon("night", "report", "--date", str(NIGHT), "--out", str(tmp_path / "absent" / "report.html"))
    assert ended.returncode == 2
    assert "No such file or directory" in ended.stderr


def test_two_nights_stand_beside_each_other(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    night(settings).run(Scope())
    assert 'id="nights"' not in page(settings), "there is nothing to compare the first night with"
    with Session(connect(settings.database)) as session, session.begin():
        set_user(session, "u0", ["item0", "item5", "item6", "item7"])
    night(settings, on=TOMORROW).run(Scope())
    nights = section(page(settings, TOMORROW), "nights")
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row)[:4] for row in re.findall(r"<tr[^>]*><td.*?</tr>", nights)]
    assert cells == [["2026-03-02", "2", "4", "2"], ["2026-03-01", "4", "4", "0"]]
    assert nights.count("<svg") == 8


def test_refused_pictures_are_counted_and_shown_but_for_unsafe_ones(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=4, targets=2)
    # Half of what the double draws scores less.
    strict = settings.model_copy(update={"night": settings.night.model_copy(update={"min_reference_score": 89.0})})
    judge = FakeJudge(lambda image: 0.9 if image[0, 0, 0] % 3 == 0 else 0.1)
    night(strict, safety=SafetyCheck(judge, 0.8)).run(Scope())
    run = Ledger(connect(settings.database)).get_run(NIGHT)
    assert run
    refusals = run.figures["total"]["refusals"]
    assert refusals["unsafe"]["count"] > 0
    assert refusals["unsafe"]["pictures"] == []
    others = [reason for reason in refusals if reason != "unsafe"]
    assert others
    refused = section(page(settings), "refused")
    for reason in refusals:
        assert f"<b>{refusals[reason]['count']}</b> {reason.replace('_', ' ')}" in refused
    assert refused.count("<img") == sum(len(refusals[reason]["pictures"]) for reason in others)
    assert run.figures["total"]["pictures_judged"] == len(judge.asked)
    assert "safety verdicts" in section(page(settings), "stages")


def test_a_night_that_was_stopped_resumed_and_retried_adds_up(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=4, targets=2)

    def fault(request: AnswerRequest, attempt: int) -> None:
        if "/u3/" in request.task_id:
            raise InferenceRejected("prompt too long")

    first, second, third = FakePigeon(fault), FakePigeon(fault), FakePigeon()

    def stop(request: PictureRequest, attempt: int) -> None:
        if len(first.drawn) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    first.picture_fault = stop
    with pytest.raises(Interrupted):
        night(settings, first).run(Scope())
    with pytest.raises(PartialFailure):
        night(settings, second).resume()
    night(settings, third).retry_failed()
    run = Ledger(connect(settings.database)).get_run(NIGHT)
    assert run
    sessions = sessions_of(run.figures)
    assert [session.kind for session in sessions] == ["first", "resumed", "retried"]
    assert sessions[0].ended.startswith("stopped: ")
    assert [session.ended for session in sessions[1:]] == ["finished", "finished"]
    assert set(sessions[0].tally.stage_seconds) >= {"plan", "tokens", "answer", "draw", "finish"}
    assert "manifest" in sessions[1].tally.stage_seconds
    total = run.figures["total"]
    assert total["pictures_drawn"] == len(first.drawn) + len(second.drawn) + len(third.drawn)
    assert total["done"] == run.figures["tasks"]["done"] == 8
    assert total["posters"] == len(reader(settings).rows())
    rows = section(page(settings), "sessions")
    assert re.findall(r"<td>(first|resumed|retried|together)</td>", rows) == ["first", "resumed", "retried", "together"]
    assert f"  pictures {total['pictures_drawn']} drawn" in words(status_of(settings, NIGHT))


def test_a_killed_process_has_a_session(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=1)
    own = {
        "PIGEON_STATE_DIR": str(settings.state_dir),
        "PIGEON_DATABASE__URL": settings.database.url.get_secret_value(),
        "PIGEON_S3__BUCKET": settings.s3.bucket,
        "PIGEON_IMAGES__ALLOWED_SCHEMES": '["file"]',
    }
    command = [sys.executable, "-m", "tests.support.night_world", "stored", "2"]
    assert subprocess.run(command, env={**os.environ, **own}, check=False).returncode == -signal.SIGKILL
    night(settings).resume()
    run = Ledger(connect(settings.database)).get_run(NIGHT)
    assert run
    assert [(one.kind, one.ended) for one in sessions_of(run.figures)] == [
        ("first", "running"),
        ("resumed", "finished"),
    ]
    assert '<td class="how">killed</td>' in page(settings)


def test_a_night_is_not_lost_for_its_report(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> str:
        raise ValueError("no such filter")

    monkeypatch.setattr(write, "render", broken)
    build(settings, tmp_path / "art", users=1, targets=1)
    echoed: list[str] = []
    night(settings, echo=echoed.append).run(Scope())
    assert len(reader(settings).rows()) == 2
    assert "no report of night-20260301: ValueError: no such filter; no poster is touched by that" in echoed
    run = Ledger(connect(settings.database)).get_run(NIGHT)
    assert run
    assert (run.status, run.report_key) == ("published", None)


def test_what_was_taken_back_is_not_in_a_report(settings: Settings, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=1)
    night(settings).run(Scope())
    ledger = Ledger(connect(settings.database))
    before = {poster.poster_id for poster in read_samples(ledger, "night-20260301", []).sheet}
    with Session(ledger.engine) as session, session.begin():
        session.execute(text("INSERT INTO withdrawals (kind, subject, reason, actor) VALUES ('user', 'u0', 'r', 'a')"))
    after = read_samples(ledger, "night-20260301", [])
    assert len(before) == 6
    assert {poster.user_id for poster in after.sheet} == {"u1", "u2"}
    assert "u0" not in {poster.user_id for poster in (*after.best, *after.worst)}
