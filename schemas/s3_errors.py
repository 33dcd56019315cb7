"""What an error of the object store means, and which setting mends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.errors import InputError, PigeonError, ServerUnavailable

ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})
"""Codes of an object that is not there."""

DENIED = frozenset({"AccessDenied", "403", "Forbidden", "AllAccessDisabled"})
"""Codes of keys that are known and may not do this; also of a missing object, for keys that may not list the bucket."""

_KEYS = "check PIGEON_S3__ACCESS_KEY_ID and PIGEON_S3__SECRET_ACCESS_KEY"

_ALWAYS_WRONG = {
    "NoSuchBucket": "no such bucket; set PIGEON_S3__BUCKET or create it",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidBucketName": "set PIGEON_S3__BUCKET",
    **dict.fromkeys(DENIED, f"may these keys do this? Else {_KEYS}"),
}
"""What waiting does not mend, with the fix."""

_EXPIRED = (
    "the temporary keys have expired; new ones in PIGEON_S3__SESSION_TOKEN, or leave s3's keys empty: boto3 renews those of "
    "roles and profiles"
)
_REGION = "the store wants another region; set PIGEON_S3__REGION"

_MAY_MEND = {
    "RequestTimeTooSkewed": "this machine's clock and the store's differ by more than it allows; set the clock (NTP)",
    "RequestExpired": "this machine's clock and the store's differ by more than it allows; set the clock (NTP)",
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": "the session token is refused; check PIGEON_S3__SESSION_TOKEN",
    "AuthorizationHeaderMalformed": _REGION,
    "AuthorizationQueryParametersError": _REGION,
    "PermanentRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
}
"""What is wrong when a process starts, and may be mended while one runs: a clock, keys that expire, a region."""


def code_of(response: Mapping[str, Any]) -> str:
    """The code of an error's answer; its status where the body had none."""
    error = response.get("Error", {})
    return str(error.get("Code") or response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))


def from_response(response: Mapping[str, Any], where: str, *, starting: bool = False) -> PigeonError:
    """What a refusal by the store means.

    Args:
        where: the store and its bucket, for people.
        starting: nothing has worked yet, so that a clock, an expired key or a region is a setting to mend, not an outage.
    """
    code = code_of(response)
    if code in _ALWAYS_WRONG:
        return InputError(f"S3 ({where}): {code}; {_ALWAYS_WRONG[code]}")
    if code in _MAY_MEND:
        words = f"S3 ({where}): {code}; {_MAY_MEND[code]}"
        return InputError(words) if starting else ServerUnavailable(words)
    return ServerUnavailable(f"S3 ({where}): {code}: {response.get('Error', {}).get('Message', '')}")
