"""What was taken back, as readers are told: `manifests/withdrawn.json`, read whole at every refresh."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

WithdrawnKind = Literal["poster", "picture", "item", "user", "night"]
WITHDRAWN_VERSION = 1


@dataclass(frozen=True)
class Withdrawn:
    """What no reader may show, by kind; of a night, the posters that its run drew."""

    poster: frozenset[str] = frozenset()
    picture: frozenset[str] = frozenset()
    item: frozenset[str] = frozenset()
    user: frozenset[str] = frozenset()
    night: frozenset[str] = frozenset()

    @property
    def has_posters(self) -> bool:
        """Whether single posters have to be looked at."""
        return bool(self.poster or self.picture or self.night)

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.has_posters or self.item or self.user)

    def to_json(self) -> bytes:
        """As stored; the same for the same content."""
        kinds = {kind: sorted(getattr(self, kind)) for kind in get_args(WithdrawnKind)}
        return json.dumps({"version": WITHDRAWN_VERSION, **kinds}, indent=1).encode()

    @classmethod
    def parse(cls, data: bytes) -> Withdrawn:
        """Inverse of `to_json`; kinds of later versions are ignored.

        Raises:
            ValueError: not such a list.
        """
        try:
            value: dict[str, Any] = json.loads(data)
            return cls(**{kind: frozenset(map(str, value.get(kind, ()))) for kind in get_args(WithdrawnKind)})
        except (TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"not a list of what is withdrawn: {type(error).__name__} {error}") from error
