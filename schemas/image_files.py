"""Pictures that are files of this machine."""

from __future__ import annotations

import errno
import os
import stat

from schemas.fetched import Fetched, HostUnavailable, Known, NotModified
from schemas.images import ImageProblem

LOCAL_FILES = "files of this machine"
"""What stands for the host where a picture is a file."""

_FILE_PROBLEMS = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.ENXIO,
    }
)
"""Errors of opening a file that lie in the file or its name."""


def read_file(path: str | os.PathLike[str], limit: int, known: Known | None = None) -> Fetched | NotModified:
    """Read a picture from a file of at most `limit` bytes; its tag changes when the file is written.

    Raises:
        ImageProblem: there is no such file, it is none (a pipe, a folder), too large, empty or may not be read.
        HostUnavailable: the disk does not give it.
    """
    try:
        # Without waiting: a pipe that nobody writes to would hold us for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ImageProblem(f"{path} is not a file")
            tag = f"{about.st_dev:x}-{about.st_ino:x}-{about.st_size:x}-{about.st_mtime_ns:x}-{about.st_ctime_ns:x}"
            if known and known.etag == tag:
                return NotModified()
            if about.st_size > limit:
                raise too_large(limit)
            body = file.read(limit + 1)
    except OSError as error:
        if error.errno in _FILE_PROBLEMS:
            raise ImageProblem(f"cannot read {path}: {error.strerror}") from error
        raise HostUnavailable(LOCAL_FILES, f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        raise ImageProblem(f"cannot read {path!r}: {error}") from error
    if len(body) > limit:
        raise too_large(limit)
    if not body:
        raise ImageProblem(f"{path} is empty")
    return Fetched(body, tag)


def too_large(limit: int) -> ImageProblem:
    """The problem of a picture of more than `limit` bytes."""
    return ImageProblem(f"is larger than {limit} bytes (setting night.max_image_bytes)")
