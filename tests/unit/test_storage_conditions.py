"""What a night and `pigeon doctor` find of a store's conditional writes is the same.

The stores are doubles: the real one holds to every condition.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from generator.storage import doctor
from generator.storage.objects import Store
from schemas.errors import InputError, PigeonError, ServerUnavailable
from schemas.runtime.checkup import Finding, look
from schemas.settings import Settings, load_settings

WANTED = {"IfNoneMatch", "IfMatch"}


class Bucket:
    """Test double of an S3 client: a bucket that ignores, refuses or never fulfils some conditions."""

    def __init__(self, **faults: tuple[str, int] | str) -> None:
        self.faults = faults
        self.tags: dict[str, str] = {}
        self.puts = 0

    def list_objects_v2(self, **_: Any) -> dict[str, Any]:
        return {}

    def get_bucket_versioning(self, **_: Any) -> dict[str, Any]:
        return {}

    def put_object(self, *, Key: str, **given: Any) -> dict[str, Any]:
        self.puts += 1
        for name in WANTED & given.keys():
            fault = self.faults.get(name, "")
            if isinstance(fault, tuple):
                raise failed(*fault)
            there = self.tags.get(Key)
            holds = there is None if name == "IfNoneMatch" else there == given[name]
            if fault == "never" or (not holds and fault != "ignored"):
                raise failed("PreconditionFailed", 412)
        self.tags[Key] = f'"{self.puts}"'
        return {"ETag": self.tags[Key]}

    def head_object(self, *, Key: str, **_: Any) -> dict[str, Any]:
        if Key not in self.tags:
            raise failed("404", 404)
        return {"ETag": self.tags[Key]}

    def get_object(self, *, Key: str, **_: Any) -> dict[str, Any]:
        return {**self.head_object(Key=Key), "Body": io.BytesIO(b"")}

    def delete_object(self, *, Key: str, **_: Any) -> dict[str, Any]:
        self.tags.pop(Key, None)
        return {}

    def close(self) -> None:
        pass


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path)


def asked(settings: Settings, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, list[Finding]]:
    """A store on the bucket, and what the doctor finds of its conditions."""
    store = Store(settings.s3, bucket)  # type: ignore[arg-type] # a test double
    monkeypatch.setattr(doctor, "_store", lambda _: store)
    found = look([probe for probe in doctor.PROBES if probe.subject == "writes"], settings)
    return store, [one for one in found if one.subject != "rights"]


def failed(code: str, status: int) -> ClientError:
    answer = {"Error": {"Code": code, "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "PutObject")  # type: ignore[arg-type] # the fields that are read


BROKEN: dict[str, tuple[Bucket, list[str]]] = {
    "ignores both": (
        Bucket(IfNoneMatch="ignored", IfMatch="ignored"),
        ["If-None-Match is ignored", "If-Match is ignored"],
    ),
    "refuses If-Match": (Bucket(IfMatch=("NotImplemented", 501)), ["If-Match is answered NotImplemented"]),
    "refuses If-None-Match": (
        Bucket(IfNoneMatch=("InvalidArgument", 400)),
        ["If-None-Match is answered InvalidArgument"],
    ),
    "allows no such method": (Bucket(IfMatch=("MethodNotAllowed", 405)), ["If-Match is answered MethodNotAllowed"]),
    "never replaces": (Bucket(IfMatch="never"), ["If-Match refuses the object's own tag"]),
    "never creates": (Bucket(IfNoneMatch="never"), ["If-None-Match refuses a new object"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_doctor_finds_what_a_night_refuses_to_begin_with(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bucket, words = BROKEN[name]
    store, found = asked(settings, bucket, monkeypatch)
    with pytest.raises(InputError, match=f"{words[0]}, so two nights could overwrite each other"):
        store.check(writes=True)
    assert [one.text.partition(":")[0] for one in found] == words
    assert {(one.verdict, one.exit_code) for one in found} == {("wrong", InputError.exit_code)}
    assert bucket.tags == {}, "what was written to ask is deleted"


def test_a_store_that_holds_to_its_conditions_is_asked_in_few_requests(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket()
    store, found = asked(settings, bucket, monkeypatch)
    assert [one.verdict for one in found] == ["ok"]
    before = bucket.puts
    store.check(writes=True)
    assert bucket.puts - before == 4
    assert bucket.tags == {}


@pytest.mark.parametrize(
    ("code", "status", "kind"), [("SlowDown", 503, ServerUnavailable), ("AccessDenied", 403, InputError)]
)
def test_an_outage_and_a_missing_right_are_no_missing_condition(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, code: str, status: int, kind: type[PigeonError]
) -> None:
    store, (found,) = asked(settings, Bucket(IfNoneMatch=(code, status)), monkeypatch)
    assert (found.subject, found.exit_code) == ("writes", kind.exit_code)
    with pytest.raises(kind, match=code):
        store.check(writes=True)
