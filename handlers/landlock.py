"""A part of the file system that a process and its children can read, but not change: Linux's Landlock.

https://docs.kernel.org/userspace-api/landlock.html. Landlock knows allowed places only: so all is allowed that stands
beside the way to the protected folder at that moment.
"""

import contextlib
import ctypes
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38
_OLDEST = 3
"""Before, truncating could not be forbidden."""
_CHANGE_FILES = 1 << 1 | 1 << 14
"""Write, truncate."""
_CHANGE_FOLDERS = sum(1 << right for right in (4, 5, 6, 7, 8, 9, 10, 11, 12, 13))
"""Remove, make and rename all kinds of entries."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def protect(folder: Path) -> int | None:
    """Prepare a rule by which nothing in `folder` can be changed; None: this system has no such rules.

    Returns:
        a file descriptor for `restrict`, which the caller closes.
    """
    if sys.platform != "linux" or _syscall(_CREATE_RULESET, None, 0, _ASK_VERSION) < _OLDEST:
        return None
    rules = _Ruleset(_CHANGE_FILES | _CHANGE_FOLDERS)
    ruleset = _syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.sizeof(rules), 0)
    for path in _beside(folder.resolve()):
        _allow(ruleset, path)
    return ruleset


def restrict(ruleset: int) -> None:
    """Put this process, and all that it starts, under the rule, for good. Meant for between fork and exec.

    Raises:
        OSError: the system refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(_RESTRICT_SELF, ruleset, 0):
        raise OSError(ctypes.get_errno(), "the system did not protect the model store")


def _beside(folder: Path) -> Iterator[Path]:
    """Every entry on the way from the root to the folder that does not lead there. Links lead elsewhere."""
    for parent, child in zip(folder.parents, (folder, *folder.parents), strict=False):
        with contextlib.suppress(PermissionError):
            yield from (path for path in parent.iterdir() if path != child and not path.is_symlink())


def _allow(ruleset: int, path: Path) -> None:
    """A file that has gone, or that this user may not look at, needs no rule."""
    try:
        entry = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        is_folder = stat.S_ISDIR(os.fstat(entry).st_mode)
        rule = _PathBeneath(_CHANGE_FILES | (_CHANGE_FOLDERS if is_folder else 0), entry)
        _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(entry)


def _syscall(number: int, *arguments: object) -> int:
    """Minus one where the system refuses."""
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))
