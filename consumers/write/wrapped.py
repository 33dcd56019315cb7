"""Records that another tool has wrapped: what wrapped them, and the setting that ends it.

Told to people in a dead letter's detail; nothing is unwrapped here.
"""

from __future__ import annotations

import json

REGISTRY_BYTES = 5
"""A zero byte and the schema's number, four bytes, which serializers of a schema registry put first."""


def cause(value: bytes) -> str | None:
    """Why a value is not the event that it should be, when a known envelope is around it."""
    if len(value) > REGISTRY_BYTES and value[0] == 0:
        kind = "JSON" if value[REGISTRY_BYTES:].lstrip()[:1] == b"{" else "Avro or Protobuf"
        return (
            f"{kind} behind the five bytes of a schema registry's serializer: produce plain JSON, "
            "with StringSerializer or JsonConverter (schemas.enable=false)"
        )
    try:
        said = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if isinstance(said, str):
        return "JSON text in quotes, encoded twice: send the object itself"
    if not isinstance(said, dict):
        return None
    inner = said.get("payload") if "schema" in said and "payload" in said else None
    if isinstance(inner, dict) and "after" not in inner:
        return "wrapped by Kafka Connect in `schema` and `payload`: set value.converter.schemas.enable=false"
    if "op" in (inner or said) and "after" in (inner or said):
        return (
            "a change event of Debezium, with the row in `after`: let the connector unwrap it, "
            "transforms=unwrap of type io.debezium.transforms.ExtractNewRecordState"
        )
    return None


def key_detail(key: bytes) -> str:
    """Why a catalogue record's key is not its item's id."""
    if key[:1] == b'"' and key[-1:] == b'"':
        return "the record's key is its item_id in JSON's quotes: produce the key as plain text (StringSerializer)"
    if len(key) > REGISTRY_BYTES and key[0] == 0:
        return "the record's key has the five bytes of a schema registry in front: produce it as plain text"
    return "the record's key is not its item_id, so compaction would lose one of them"
