"""Taking back what was published, posters, pictures, items, users, whole nights; and lifting that.

Rows of `withdrawals` come first, then `manifests/withdrawn.json`, which every reader looks at when it refreshes: what dies in
between is mended by the next call, and by the next night, which leaves out what the rows say. Nothing here needs the night's
lease: an operator takes back while a night is under way.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import get_args

from sqlalchemy import Engine, Row, exists, func, select, text, update
from sqlalchemy.orm import Session

from generator.nightly.erasure_fence import FENCE_LOCK
from generator.nightly.online_store import export, export_withdrawn
from generator.nightly.publish import replace_pointer
from generator.nightly.taken_back import NOT_TO_BE_SHOWN, with_stamp
from generator.nightly.verdicts import clear_verdict
from generator.storage.objects import Store
from generator.storage.postgres import connect, plain_errors
from schemas.errors import InputError, Refused, ServerUnavailable
from schemas.manifest import POINTER_KEY, WITHDRAWN_KEY, ManifestRef, Pointer, Withdrawn
from schemas.manifest_files import JSON
from schemas.manifest_withdrawn import WithdrawnKind
from schemas.settings import Settings
from schemas.tables import Item, NightRun, Poster, Withdrawal

ATTEMPTS = 10

# A whole night at once may take longer than a statement should; an operator waits for it.
_UNLIMITED = text("SET LOCAL statement_timeout = 0")
# What the night replaced is current again; what it drew for the first time is not shown at all.
_TURN_BACK = text(
    with_stamp("""
UPDATE current_posters c
SET input_fingerprint = o.input_fingerprint, model_version = o.model_version, weights = o.weights, run_id = o.run_id,
    logical_date = o.logical_date
FROM (
    SELECT DISTINCT ON (t.user_id, t.item_id) t.user_id, t.item_id, t.input_fingerprint, t.model_version, t.weights,
           t.run_id, r.logical_date
    FROM current_posters n
    JOIN night_tasks t ON t.user_id = n.user_id AND t.item_id = n.item_id AND t.run_id <> n.run_id AND t.status = 'done'
    JOIN night_runs r ON r.run_id = t.run_id AND r.status = 'published' AND r.logical_date <= n.logical_date
    WHERE n.run_id = :run_id AND NOT EXISTS (
        SELECT 1 FROM withdrawals w WHERE w.kind = 'night' AND w.subject = t.run_id AND w.lifted_at IS NULL
    )
    ORDER BY t.user_id, t.item_id, r.logical_date DESC, r.started_at DESC
) o
WHERE c.user_id = o.user_id AND c.item_id = o.item_id AND c.run_id = :run_id
""")
)
_TURN_ON = text(
    with_stamp("""
INSERT INTO current_posters AS c (user_id, item_id, input_fingerprint, model_version, weights, run_id, logical_date)
SELECT t.user_id, t.item_id, t.input_fingerprint, t.model_version, t.weights, t.run_id, r.logical_date
FROM night_tasks t JOIN night_runs r USING (run_id)
WHERE t.run_id = :run_id AND t.status = 'done'
ON CONFLICT (user_id, item_id) DO UPDATE SET
  input_fingerprint = excluded.input_fingerprint, model_version = excluded.model_version, weights = excluded.weights,
  run_id = excluded.run_id, logical_date = excluded.logical_date
WHERE c.logical_date <= excluded.logical_date
""")
)
# Users whose current posters were turned back or on are planned again: other posters may be right for them.
_PLAN_AGAIN = text("""
DELETE FROM planned_users p USING night_tasks t WHERE t.run_id = :run_id AND p.user_id = t.user_id
""")


def withdraw(settings: Settings, kind: WithdrawnKind, subject: str, *, reason: str, actor: str | None = None) -> str:
    """Take back a poster, a picture, an item or a user's posters.

    Readers leave it out from their next refresh on. Returns a line that says so.

    Raises:
        InputError: there is no such poster, picture or item, or no reason was given.
        ServerUnavailable: Postgres or S3 is away; the same call again finishes it.
    """
    _check(kind, subject, reason)
    with open_storage(settings) as (store, engine):
        with writing(engine) as session:
            if not _is_known(session, kind, subject):
                raise InputError(f"no {kind} {subject!r}: nothing was withdrawn")
            row = _open_row(session, kind, subject)
            if row is None:
                session.add(Withdrawal(kind=kind, subject=subject, reason=reason, actor=actor or current_actor()))
        total = tell_readers(settings, store, engine)
        if row is not None:
            return f"{kind} {subject} was withdrawn already, by {row.actor} at {row.at:%Y-%m-%d %H:%M}: {row.reason}"
        return f"{kind} {subject} withdrawn; readers leave it out at their next refresh ({total} withdrawals are open)"


def lift(settings: Settings, kind: WithdrawnKind, subject: str, *, reason: str, actor: str | None = None) -> str:
    """Undo a withdrawal.

    Readers show again what is in their set, later nights publish it again. What a night drew is current again; a picture that
    was found unsafe is cleared: no later check withdraws it.

    Raises:
        InputError: it is not withdrawn, or no reason was given.
        ServerUnavailable: Postgres or S3 is away; the same call again finishes it.
    """
    _check(kind, subject, reason)
    with open_storage(settings) as (store, engine):
        with writing(engine) as session:
            if _open_row(session, kind, subject) is None:
                total = tell_readers(settings, store, engine)
                raise InputError(f"{kind} {subject!r} is not withdrawn; {total} withdrawals are open")
            session.execute(
                update(Withdrawal)
                .where(Withdrawal.kind == kind, Withdrawal.subject == subject, Withdrawal.lifted_at.is_(None))
                .values(
                    lifted_at=func.now(),
                    reason=Withdrawal.reason.op("||")(f"; lifted by {actor or current_actor()}: {reason}"),
                )
            )
            if kind == "picture":
                clear_verdict(session, subject)
            if kind == "night":
                session.execute(_UNLIMITED)
                session.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": FENCE_LOCK})
                session.execute(_TURN_ON, {"run_id": subject})
                session.execute(_PLAN_AGAIN, {"run_id": subject})
        total = tell_readers(settings, store, engine)
        line = f"{kind} {subject} is no longer withdrawn ({total} withdrawals are open)"
        if kind == "night":
            line += f"; {_lead_on(settings, store, engine, subject)}"
        return line


def rollback(settings: Settings, *, reason: str, actor: str | None = None) -> str:
    """Lead readers back to the set before the newest, and withdraw the night of the newest.

    No reader shows what that night drew, and later nights carry on from what was current before it. It stays so until the
    night's withdrawal is lifted.

    Raises:
        InputError: nothing is published, or no reason was given.
        Refused: there is no set before it.
        ServerUnavailable: Postgres or S3 is away; the same call again finishes it.
    """
    _check("night", "newest", reason)
    with open_storage(settings) as (store, engine):
        pointer = read_pointer(store)
        if pointer is None:
            raise InputError("nothing is published: there is no night to roll back")
        back = pointer.previous
        if back is None or any(not store.exists(key) for key in back.keys):
            raise Refused(
                f"no whole set before that of {pointer.current.run_id}: nothing was changed. "
                f"Withdraw single posters, items or users, or publish a new night"
            )
        bad = pointer.current.run_id
        with writing(engine) as session:
            if _open_row(session, "night", bad) is None:
                session.add(Withdrawal(kind="night", subject=bad, reason=reason, actor=actor or current_actor()))
                session.flush()
            session.execute(_UNLIMITED)
            session.execute(_TURN_BACK, {"run_id": bad})
            session.execute(text("DELETE FROM current_posters WHERE run_id = :run_id"), {"run_id": bad})
            session.execute(_PLAN_AGAIN, {"run_id": bad})
            before = _ref_before(session, store, back, bad)
        tell_readers(settings, store, engine)

        def change(old: Pointer | None) -> Pointer | None:
            if old is None or old.current.run_id != bad:  # somebody published or rolled back meanwhile
                return None
            return Pointer(back, before, old.fencing_token, datetime.now(UTC).isoformat(timespec="seconds"))

        if settings.online.redis_url:
            export(settings, back, turn_back=True)
        if replace_pointer(store, None, change) is None:
            return f"{bad} is withdrawn; the pointer leads elsewhere already"
        return f"rolled back from {bad} to {back.run_id} ({back.posters} posters); readers follow at their next refresh"


def sync_withdrawn(store: Store, engine: Engine) -> Withdrawn:
    """Write the list that readers look at, unless it is right already.

    It has what is withdrawn, users who object and users who are being erased.

    Raises:
        ServerUnavailable: others keep changing the list.
    """
    for _ in range(ATTEMPTS):
        stored = store.get(WITHDRAWN_KEY)
        # Read after the tag: whoever changed rows since then has changed, or will change, the tag as well.
        with writing(engine) as session:
            rows = session.execute(text(NOT_TO_BE_SHOWN))
            subjects: dict[str, set[str]] = {kind: set() for kind in get_args(WithdrawnKind)}
            for kind, subject in rows:
                subjects[kind].add(subject)
        wanted = Withdrawn(**{kind: frozenset(names) for kind, names in subjects.items()})
        body = wanted.to_json()
        if (stored is None and not wanted) or (stored is not None and stored.body == body):
            return wanted
        if store.replace(WITHDRAWN_KEY, body, JSON, etag=stored.etag if stored else None):
            return wanted
    raise ServerUnavailable(f"{store.uri(WITHDRAWN_KEY)} kept changing under us; try again")


def read_pointer(store: Store) -> Pointer | None:
    """The pointer as it is now.

    Raises:
        InputError: it cannot be read.
    """
    stored = store.get(POINTER_KEY)
    try:
        return Pointer.parse(stored.body) if stored else None
    except ValueError as error:
        raise InputError(f"{store.uri(POINTER_KEY)}: {error}; move it away to start over") from error


@contextmanager
def open_storage(settings: Settings) -> Iterator[tuple[Store, Engine]]:
    """The bucket and Postgres, without a lease; both are closed at the end.

    A bucket that is away is no reason to record nothing: the next erasure tells readers what the rows say.

    Raises:
        InputError: bucket, keys, region or clock are wrong.
    """
    engine = connect(settings.database)
    store = Store(settings.s3)
    try:
        with suppress(ServerUnavailable):
            store.check()
        yield store, engine
    finally:
        engine.dispose()
        store.s3.close()


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """A transaction without a lease."""
    with plain_errors(engine), Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


def _check(kind: str, subject: str, reason: str) -> None:
    if kind not in get_args(WithdrawnKind):
        raise InputError(f"{kind!r} cannot be withdrawn; one of {', '.join(get_args(WithdrawnKind))}")
    if not subject.strip():
        raise InputError(f"the {kind}'s id is empty")
    if not reason.strip():
        raise InputError("--reason is empty: say why, for whoever looks later")


def _is_known(session: Session, kind: str, subject: str) -> bool:
    """Whether there is such a thing; a user need not be known to us."""
    known = {
        "poster": exists().where(Poster.poster_id == subject),
        "picture": exists().where(Poster.picture_key == subject),
        "item": exists().where(Item.item_id == subject),
        "night": exists().where(NightRun.run_id == subject),
    }
    return kind not in known or bool(session.scalar(select(known[kind])))


def _open_row(session: Session, kind: str, subject: str) -> Row[str, str, datetime] | None:
    return session.execute(
        select(Withdrawal.reason, Withdrawal.actor, Withdrawal.at)
        .where(Withdrawal.kind == kind, Withdrawal.subject == subject, Withdrawal.lifted_at.is_(None))
        .limit(1)
    ).one_or_none()


def tell_readers(settings: Settings, store: Store, engine: Engine) -> int:
    """Bring the bucket's list, and the online store's, up to date; how many withdrawals are open."""
    now = sync_withdrawn(store, engine)
    if settings.online.redis_url:
        export_withdrawn(settings, now)
    with writing(engine) as session:
        return session.scalar(select(func.count()).where(Withdrawal.lifted_at.is_(None))) or 0


def _ref_before(session: Session, store: Store, back: ManifestRef, bad: str) -> ManifestRef | None:
    """The newest whole set before `back` that is not withdrawn: what the next rollback would lead to."""
    runs = session.scalars(
        select(NightRun)
        .where(
            NightRun.status == "published",
            NightRun.manifest_key.is_not(None),
            NightRun.run_id.not_in([back.run_id, bad]),
            text("night_runs.logical_date < CAST(:back AS date)").bindparams(back=back.logical_date),
            ~exists().where(
                Withdrawal.kind == "night", Withdrawal.subject == NightRun.run_id, Withdrawal.lifted_at.is_(None)
            ),
        )
        .order_by(NightRun.logical_date.desc(), NightRun.started_at.desc())
        .limit(5)
    )
    refs = (_ref_of(store, run) for run in runs)
    return next((ref for ref in refs if ref is not None), None)


def _ref_of(store: Store, run: NightRun) -> ManifestRef | None:
    """A run's set as its own file tells; None for a set of version 1, or one that is no longer whole."""
    stored = store.get(run.manifest_key) if run.manifest_key else None
    if stored is None or run.manifest_key is None:
        return None
    try:
        ref = ManifestRef.parse_set(run.manifest_key, stored.body)
    except ValueError:
        return None
    return ref if all(store.exists(key) for key in ref.keys) else None


def _lead_on(settings: Settings, store: Store, engine: Engine, run_id: str) -> str:
    """Lead readers to a night's set again unless they are at a later one."""
    with writing(engine) as session:
        run = session.get(NightRun, run_id)
    ref = _ref_of(store, run) if run else None
    if ref is None:
        return "its set is gone; the next night publishes its posters again"

    def change(old: Pointer | None) -> Pointer | None:
        if old is None or old.current.run_id == ref.run_id or old.current.logical_date > ref.logical_date:
            return None
        return Pointer(ref, old.current, old.fencing_token, datetime.now(UTC).isoformat(timespec="seconds"))

    if settings.online.redis_url:
        export(settings, ref)
    if replace_pointer(store, None, change) is None:
        return "readers stay with the set they have; the next night publishes its posters again"
    return f"readers are led to its set again ({ref.posters} posters)"


def current_actor() -> str:
    """Who took something back, for whoever looks later."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
