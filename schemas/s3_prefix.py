"""A client whose keys in one bucket all begin with a prefix: a bucket can be shared.

Callers know nothing of it: the prefix is put before what they send and taken off what they get.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

_SENT = ("Key", "Prefix", "StartAfter", "KeyMarker", "Marker")
_TOLD = ("Prefix", "StartAfter", "KeyMarker", "NextKeyMarker", "Marker", "NextMarker")
_LISTED = ("Contents", "Versions", "DeleteMarkers")


def as_folder(prefix: str) -> str:
    """A prefix as keys begin with it: a slash at its end, none before it; empty where there is none."""
    inner = prefix.strip("/")
    return f"{inner}/" if inner else ""


def add_prefix(client: S3Client, bucket: str, prefix: str) -> None:
    """Have all requests for `bucket` stay under `prefix`, which ends with a slash."""

    def put_before(params: dict[str, Any], model: Any, **_: Any) -> dict[str, Any]:
        if params.get("Bucket") != bucket:
            return params
        own = {name: prefix + params[name] for name in _SENT if name in params}
        if model.name.startswith("List") and "Prefix" not in own:
            own["Prefix"] = prefix
        return {**params, **own}

    def take_off(parsed: dict[str, Any], **_: Any) -> None:
        if parsed.get("Name") != bucket:
            return
        entries = [parsed, *(entry for name in _LISTED for entry in parsed.get(name, []))]
        for entry in entries:
            for name in (*_TOLD, "Key"):
                if isinstance(entry.get(name), str):
                    entry[name] = entry[name].removeprefix(prefix)

    # Added last: botocore's own handlers decode the keys of a list first.
    hooks: Any = client.meta.events  # its types know no handler that answers
    hooks.register_last("provide-client-params.s3", put_before)
    hooks.register_last("after-call.s3", take_off)
