"""What goes wrong in an ingest and is the user's to mend, in one line: a full disk, a folder or bucket that refuses."""
from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.disk import is_full
from pipelines.errors import UserError, is_users_mistake
from pipelines.location import Address, Place, fault

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def told(error: Exception, folder: Place) -> str | None:
    """The line that tells the user of an error that he can mend; None for any other."""
    if is_users_mistake(error):
        return str(error)
    if is_full(error):
        disk = folder if isinstance(folder, Path) else f"the temporary files, {tempfile.gettempdir()},"
        return (f"the disk of {disk} is full: nothing was appended, what was there is untouched; free some space "
                "and run the same command again")
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        if number in _READ_ONLY and str(getattr(cause, "filename", "")).startswith(str(folder)):
            return f"{folder} cannot be written ({cause}): mend its permissions, or name another data.store"
        if isinstance(folder, Address) and (line := fault(cause, folder)):
            return line
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def raise_told(folder: Place) -> Iterator[None]:
    """Turn an error that the user can mend into a UserError."""
    try:
        yield
    except Exception as error:
        line = told(error, folder)
        if line is None:
            raise
        raise UserError(line) from error
