"""The error tree and the exit codes of the `pigeon` command.

    PigeonError                 1  anything below that has no code of its own
    ├── InputError              2  a setting, flag, file or row is wrong; the message names the field and the fix
    ├── ServerUnavailable       3  Kafka, Postgres, S3 or Triton cannot be reached or does not answer in time
    ├── ModelError              4  weights or a model repository are missing, misshapen or do not fit the server
    ├── PoisonLimitExceeded     5  a consumer met more bad records than its limit; offsets are held
    ├── LockHeld                6  another process leads (night, scheduler, migration); nothing was done
    ├── PartialFailure          7  the work is published, but some of its tasks failed; the ledger says which and why
    └── Refused                 8  a gate, minimum or policy refused; nothing was changed

Exit code 0 is success, 130 is Ctrl-C, 143 is SIGTERM.
"""

from __future__ import annotations


class PigeonError(Exception):
    """Base of all errors that a user can act on; its text is one line and needs no stack trace."""

    exit_code = 1


class InputError(PigeonError):
    """A setting, flag, file or row is wrong; the message names the field and the fix."""

    exit_code = 2


class ServerUnavailable(PigeonError):
    """A server cannot be reached or does not answer within its deadline; trying again later may help."""

    exit_code = 3


class ModelError(PigeonError):
    """Weights or a model repository are missing, misshapen or not for this server."""

    exit_code = 4


class PoisonLimitExceeded(PigeonError):
    """A consumer met more undecodable records than its limit allows; no offset past them was stored."""

    exit_code = 5


class LockHeld(PigeonError):
    """Another process holds the lease that this work needs."""

    exit_code = 6


class PartialFailure(PigeonError):
    """The run finished and published, but at least one of its tasks failed for good."""

    exit_code = 7


class Refused(PigeonError):
    """A gate, a minimum or a stated policy refused; nothing was changed."""

    exit_code = 8
