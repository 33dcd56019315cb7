"""What can go wrong between a package registry and a drawn poster."""

from schemas.errors import PigeonError


class DatasetError(PigeonError):
    """A data set is absent, incomplete or unreadable.

    The message is one line that says what to do about it.
    """
