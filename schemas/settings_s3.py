"""Settings of the object store."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from schemas.s3_prefix import as_folder
from schemas.settings_group import Group, Seconds

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")


class S3Settings(Group):
    """The object store of images, manifests, snapshots and adapters."""

    endpoint_url: str | None = Field(None, description="http(s)://host:port; empty for AWS itself.")
    bucket: str = Field("pigeon", description="Its name alone, without s3://.")
    prefix: str = Field(
        "",
        description="First part of every key of ours, such as team-a/pigeon, in a bucket that is shared with others; change it "
        "on an empty installation only.",
    )
    region: str = "us-east-1"
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto",
        description="Where the bucket's name stands: path = host/bucket/key, virtual = bucket.host/key, which some stores want; "
        "auto = path for addresses of our own, virtual for AWS.",
    )
    access_key_id: str | None = Field(
        None, description="Empty: where boto3 looks (environment, profile, role), which also renews what expires."
    )
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = Field(
        None, description="Of temporary keys; they end with it, so nights should have keys that boto3 renews."
    )
    checksums: Literal["when_required", "when_supported"] = Field(
        "when_required", description="botocore's extra checksums; some S3 servers refuse `when_supported`."
    )
    connect_timeout_seconds: Seconds = 5.0
    read_timeout_seconds: Seconds = 30.0
    max_attempts: int = Field(5, ge=1)

    def uri(self, key: str) -> str:
        """The s3:// address of one of our keys."""
        return f"s3://{self.bucket}/{self.prefix}{key}"

    @field_validator("endpoint_url")
    @classmethod
    def _endpoint_is_a_url(cls, endpoint_url: str | None) -> str | None:
        if not endpoint_url:
            return None
        parts = urlsplit(endpoint_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{endpoint_url!r} is no address; write http://host:port or https://host")
        if parts.path.strip("/") or parts.query:
            raise ValueError(
                f"{endpoint_url!r} has more than a host; the bucket is s3.bucket, what follows it is s3.prefix"
            )
        return endpoint_url.rstrip("/")

    @field_validator("bucket")
    @classmethod
    def _bucket_is_a_name(cls, bucket: str) -> str:
        if _BUCKET.fullmatch(bucket):
            return bucket
        name, _, rest = bucket.removeprefix("s3://").partition("/")
        instead = f"; write {name}" if name != bucket and _BUCKET.fullmatch(name) else ""
        raise ValueError(
            f"{bucket!r} is no bucket's name (3 to 63 letters, digits, dots and dashes){instead}"
            + (f", and {rest.strip('/')} as s3.prefix" if instead and rest.strip("/") else "")
        )

    @field_validator("prefix")
    @classmethod
    def _prefix_is_a_folder(cls, prefix: str) -> str:
        parts = prefix.strip("/").split("/")
        if "://" in prefix or any(part in {".", ".."} or (not part and len(parts) > 1) for part in parts):
            raise ValueError(f"{prefix!r} is no first part of a key, such as team-a/pigeon")
        return as_folder(prefix)

    @field_validator("region")
    @classmethod
    def _region_is_named(cls, region: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9-]+", region):
            raise ValueError(f"{region!r} is no region; a store of your own takes any, such as us-east-1")
        return region
