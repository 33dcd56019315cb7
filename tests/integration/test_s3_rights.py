"""What nights, erasure, upkeep, hosts of Triton and readers ask of S3 is what deploy/s3/*.json allows."""

from __future__ import annotations

import fnmatch
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient
from sqlalchemy.orm import Session

from generator.nightly.plan import Scope
from generator.nightly.withdraw import withdraw
from generator.serving.pull import pull
from generator.serving.release import push
from generator.storage.objects import Store
from generator.storage.postgres import connect
from generator.upkeep.erase import erase_users
from generator.upkeep.retention import upkeep
from schemas.settings import Settings
from schemas.tables import Erasure
from tests.support.night_world import NIGHT, build, night, reader
from tests.support.tiny_serving import tiny_build

pytestmark = pytest.mark.integration

POLICIES = Path(__file__).parents[2] / "deploy" / "s3"
NEEDS = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CopyObject": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "ListObjectVersions": "s3:ListBucketVersions",
    "GetBucketVersioning": "s3:GetBucketVersioning",
}
"""Operation -> the action that AWS asks for."""

Call = tuple[str, dict[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call of every S3 client of this process."""
    made: list[Call] = []
    call = BaseClient._make_api_call

    def record(self: BaseClient, operation: str, parameters: dict[str, Any]) -> Any:
        made.append((operation, parameters))
        return call(self, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", record)
    return made


def allowed(policy: str, bucket: str) -> list[tuple[str, str]]:
    """(action, resource) of a policy, for a bucket."""
    statements = json.loads((POLICIES / f"{policy}.json").read_text().replace("BUCKET", bucket))["Statement"]
    return [pair for one in statements for pair in product(listed(one["Action"]), listed(one["Resource"]))]


def listed(value: str | list[str]) -> list[str]:
    """A policy says one or several."""
    return [value] if isinstance(value, str) else value


def beyond(calls: list[Call], policy: str, bucket: str) -> list[str]:
    """Calls that the policy does not allow."""
    rights = allowed(policy, bucket)
    refused = set()
    for operation, parameters in calls:
        keys = [one["Key"] for one in parameters.get("Delete", {}).get("Objects", [])] or [parameters.get("Key")]
        for key in keys:
            resource = f"arn:aws:s3:::{bucket}" + (f"/{key}" if key else "")
            action = NEEDS[operation]
            if not any(action == right and fnmatch.fnmatchcase(resource, pattern) for right, pattern in rights):
                refused.add(f"{action} {resource}")
    return sorted(refused)


def test_nights_erasure_and_upkeep_stay_within_their_policy(
    settings: Settings, tmp_path: Path, calls: list[Call]
) -> None:
    build(settings, tmp_path / "art", users=3, targets=2)
    night(settings).run(Scope())
    withdraw(settings, "user", "u0", reason="no")
    with Session(connect(settings.database)) as session, session.begin():
        session.add(Erasure(user_id="u1", requested_at=NIGHT))
    assert "1 user erased" in erase_users(settings)
    assert list(upkeep(settings))
    assert {"PutObject", "GetObject", "ListObjectsV2"} <= {operation for operation, _ in calls}
    assert any(operation.startswith("Delete") for operation, _ in calls)
    assert beyond(calls, "night", settings.s3.bucket) == []
    assert beyond(calls, "reader", settings.s3.bucket), "a reader may not do what a night does"


def test_readers_only_read(settings: Settings, tmp_path: Path, calls: list[Call]) -> None:
    build(settings, tmp_path / "art", users=2, targets=1)
    night(settings).run(Scope())
    calls.clear()
    posters = reader(settings)
    assert posters.posters_for("u0", ["item8", "item9"])
    posters.refresh()
    assert {operation for operation, _ in calls} == {"GetObject"}
    assert beyond(calls, "reader", settings.s3.bucket) == []


@pytest.mark.timeout(1200)  # the first run exports the tiny model
def test_a_host_of_triton_reads_releases_and_nothing_else(
    settings: Settings, tmp_path: Path, calls: list[Call]
) -> None:
    tiny_build(tmp_path)
    store = Store(settings.s3)
    store.check(writes=True)
    push(store, tmp_path / "models", "nano")
    assert beyond(calls, "night", settings.s3.bucket) == [], "it is pushed by whoever may retrain"
    calls.clear()
    store.check()
    assert pull(store, tmp_path / "host" / "models", "nano").changed
    assert beyond(calls, "server", settings.s3.bucket) == []
    calls.clear()
    assert not push(store, tmp_path / "models", "nano")[1]
    assert beyond(calls, "reader", settings.s3.bucket)


@pytest.mark.parametrize("policy", ["night", "reader", "server"])
def test_no_policy_reaches_beyond_the_bucket_or_beyond_objects(policy: str) -> None:
    for action, resource in allowed(policy, "posters"):
        assert action != "s3:*"
        assert resource.removeprefix("arn:aws:s3:::").split("/")[0] == "posters"
        assert not action.startswith(("s3:PutBucket", "s3:DeleteBucket", "s3:PutObjectAcl"))
