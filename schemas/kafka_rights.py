"""Which rights a login has at a broker: asked of the broker, which lists them, without doing anything.

Brokers that do not list them (embedded ones, Apache Kafka before 2.3) leave nothing to be told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

Operation = Literal["READ", "WRITE", "DESCRIBE", "CREATE"]
_REFUSED_TOPIC = 29  # TOPIC_AUTHORIZATION_FAILED


@dataclass(frozen=True, order=True)
class Right:
    """One right that a command needs."""

    resource: Literal["topic", "group"]
    name: str
    operation: Operation

    def __str__(self) -> str:
        return f"{self.operation} on {self.resource} {self.name}"


def missing_rights(admin: Any, needed: Iterable[Right]) -> list[Right]:
    """Rights of `needed` that the login of an admin client does not have, ordered.

    Topics that do not exist are not told of.

    Raises:
        KafkaError: the broker does not answer.
    """
    wanted = sorted(set(needed))
    topics = _of_topics(admin, {right.name for right in wanted if right.resource == "topic"})
    groups = {right.name: _of_group(admin, right.name) for right in wanted if right.resource == "group"}
    found = {"topic": topics, "group": groups}
    return [right for right in wanted if _lacks(found[right.resource].get(right.name), right.operation)]


def _lacks(operations: Collection[str] | None, operation: Operation) -> bool:
    return operations is not None and operation not in operations


def _of_topics(admin: Any, names: Collection[str]) -> dict[str, set[str] | None]:
    """Topic -> operations that we may do; None where the broker does not say."""
    found: dict[str, set[str] | None] = {}
    for topic in admin.describe_topics(sorted(names)) if names else ():
        operations = topic.get("authorized_operations")
        if topic["error_code"] == _REFUSED_TOPIC:
            found[topic["name"]] = set()
        elif topic["error_code"] == 0 and operations is not None:
            found[topic["name"]] = set(operations)
    return found


def _of_group(admin: Any, group: str) -> set[str] | None:
    """Operations that we may do with a group; None where the broker does not say."""
    from kafka import errors

    try:
        told = admin.describe_groups([group])[group]
    except errors.GroupAuthorizationFailedError:
        return set()
    except (errors.KafkaError, LookupError, ValueError):  # small brokers answer with operations that there are not
        return None
    operations = told.get("authorized_operations")
    return None if operations is None else set(operations)
