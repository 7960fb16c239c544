"""The two ways a run can end badly that are not bugs, and how a command line shows them."""

import errno
import os
import sys
import traceback
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message is one line that says what is wrong and what to do."""


class Diverged(Exception):
    """Training produced a loss that is not finite. `step` counts optimisation steps; None: at the end."""

    def __init__(self, step: int | None, what: str = "the loss"):
        super().__init__(f"{what} is not finite" + ("" if step is None else f" at step {step}"))
        self.step, self.what = step, what


def is_machine_trouble(error: BaseException) -> bool:
    """Whether the disk is full or a folder cannot be written: the user's to mend, whatever was being done."""
    return isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
    )


def describe(error: BaseException) -> str:
    """One line for any exception, with the advice that the common operating-system errors deserve."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or 'while writing'}): free some space and run the same command again"
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        what = error.filename or "a file"
        return f"cannot write {what}: choose another folder with OUT= / --out, or change its permissions"
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError | Diverged) else f"{type(error).__name__}: {text}"


def main(command: Callable[[], int | None], debug: bool | None = None) -> None:
    """Run a command and exit: 0, its own status, 2 with one line for a user's error, 130 for Ctrl-C.

    Operating-system errors about space and permission count as the user's; anything else is a bug and keeps its
    traceback. `--debug` on the command line (or `debug=True`) shows the traceback in every case.
    """
    if debug is None:
        debug = "--debug" in sys.argv
    try:
        status = command() or 0
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # The reader (head, less) has gone: silence the interpreter's own flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except (UserError, Diverged, OSError) as error:
        if isinstance(error, OSError) and not is_machine_trouble(error):
            raise
        if debug:
            traceback.print_exc()
        print(f"error: {describe(error)}", file=sys.stderr)
        status = 2
    sys.exit(status)
