"""A release's list stays inside the repository, is whole, and is what its name says, or is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from generator.serving.release import POINTER, Release, ReleaseFile, read_parts, read_release, release_key
from generator.storage.objects import Store, Stored
from schemas.errors import ModelError

FILE = ReleaseFile(sha256="0" * 64, parts=())


class Bucket(Store):
    """Test double of a bucket that is only read."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.uri = lambda key: f"s3://posters/{key}"

    def get(self, key: str, *, bucket: str | None = None) -> Stored | None:
        body = self.objects.get(key)
        return None if body is None else Stored(body, "tag")


def test_a_release_is_found_by_the_pointer_and_by_its_hash() -> None:
    made = Release(
        build="b", preset="nano", files={"manifest.json": FILE, "personalizer/1/x": FILE, "personalizer/12/x": FILE}
    )
    assert made.adapters == (1, 12)
    bucket = Bucket()
    with pytest.raises(ModelError, match=r"no s3://posters/releases/latest.json: `pigeon models push`"):
        read_release(bucket)
    bucket.objects[POINTER] = json.dumps({"release": made.sha256}).encode()
    with pytest.raises(ModelError, match=rf"no s3://posters/releases/{made.sha256}.json"):
        read_release(bucket)
    bucket.objects[release_key(made.sha256)] = made.body()
    assert read_release(bucket) == read_release(bucket, made.sha256) == made
    bucket.objects[release_key(made.sha256)] = made.body() + b" "
    with pytest.raises(ModelError, match="holds other bytes than its name says"):
        read_release(bucket)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../outside", "leads out of the repository"),
        ("/etc/passwd", "leads out of the repository"),
        ("unet/../../outside", "leads out of the repository"),
        ("unet//1", "leads out of the repository"),
        ("unet/1/model.onnx", "manifest.json is not among its files"),
    ],
)
def test_a_list_that_leads_elsewhere_is_refused(path: str, reason: str) -> None:
    files = {path: FILE.model_dump()}
    if "leads" in reason:
        files["manifest.json"] = FILE.model_dump()
    body = json.dumps({"build": "b", "preset": "nano", "files": files}).encode()
    sha = hashlib.sha256(body).hexdigest()
    bucket = Bucket()
    bucket.objects[release_key(sha)] = body
    with pytest.raises(ModelError, match=reason):
        read_release(bucket, sha)


def test_a_file_is_its_parts_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.serving.release.PART_BYTES", 4)
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert list(read_parts(path)) == [b"0123", b"4567", b"89"]
    path.write_bytes(b"")
    assert list(read_parts(path)) == []
