"""The control group: users who are shown the items' own posters, and the ids by which they report it.

Who is in it depends on the user's id alone, so it is the same for every reader, day and item, and grows with the share: nobody
leaves it when the share is raised.
"""

from __future__ import annotations

import hashlib

from schemas.hashing import unit_interval

CONTROL_PREFIX = "control:"
CONTROL_SHARE = 0.05
"""Share of the users in the control group, unless a setting says otherwise."""


def in_control_group(user_id: str, share: float) -> bool:
    """Whether a user is in the control group of this share."""
    return unit_interval(f"control:{user_id}".encode("utf-8", "surrogatepass")) < share


def control_poster_id(item_id: str) -> str:
    """The poster_id by which the control group reports an item's own poster; no drawn one has such an id."""
    return CONTROL_PREFIX + hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
