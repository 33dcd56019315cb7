"""Users who object to drawn posters, by an operator's hand.

Events (`users.objection.v1`) come by the consumers.
"""

from __future__ import annotations

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from generator.nightly.withdraw import current_actor, open_storage, tell_readers, writing
from schemas.errors import InputError
from schemas.settings import Settings
from schemas.tables import UserObjection


def set_objection(settings: Settings, user: str, *, objects: bool, reason: str, actor: str | None = None) -> str:
    """Record that a user objects to drawn posters, or no longer does, as of now; tell readers.

    Returns a line that says so.

    Raises:
        InputError: the user or the reason is empty, or there is no objection to lift.
        ServerUnavailable: Postgres or S3 is away; the same call again finishes it.
    """
    if not user.strip():
        raise InputError("--user is empty: give the user's id")
    if not reason.strip():
        raise InputError("--reason is empty: say why, for whoever looks later")
    with open_storage(settings) as (store, engine):
        with writing(engine) as session:
            found = session.get(UserObjection, user)
            if not objects and (found is None or not found.objects):
                raise InputError(f"user {user!r} does not object: there is nothing to lift")
            if found is None or found.objects != objects:
                _save(session, user, objects=objects, reason=f"{actor or current_actor()}: {reason}")
        tell_readers(settings, store, engine)
    if not objects:
        return f"user {user} no longer objects; posters are drawn again from the next night on"
    already = f" (already, since {found.occurred_at:%Y-%m-%d %H:%M})" if found is not None and found.objects else ""
    return f"user {user} objects{already}; readers show the items' own pictures from their next refresh on"


def _save(session: Session, user: str, *, objects: bool, reason: str) -> None:
    values = {"objects": objects, "occurred_at": func.now(), "reason": reason, "updated_at": func.now()}
    statement = insert(UserObjection).values(user_id=user, **values)
    session.execute(statement.on_conflict_do_update(index_elements=[UserObjection.user_id], set_=values))
