"""The exceptions that a command answers with one line: input that a user can correct, and a run that failed."""

import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input: the message is one line that names the file, the line or key, and what was expected.

    The command line prints it and exits with status 2; library callers may catch it.
    """


class DivergedError(FloatingPointError):
    """The loss of `step` (1 is the first) is not finite; the message names the utterances that the step read."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


BAD_INPUT = (InputError, OSError, UnicodeError)  # a missing, unwritable or unreadable file, wherever it is noticed


def guarded(handle: Callable[[], int | None]) -> int:
    """`handle()` as an exit status, with one line on standard error in place of the traceback of what can be expected.

    Bad input is 2, a run that diverged 1, Ctrl-C 130, a closed pipe 141; a fault of the program stays a traceback.
    """
    try:
        status = handle() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor at the interpreter's own last flush
        return 141
    except BAD_INPUT as error:
        named = isinstance(error, OSError) and error.filename is not None
        return _told(f"{error.filename}: {error.strerror}" if named else str(error), 2)
    except DivergedError as error:
        return _told(str(error), 1)
    except KeyboardInterrupt:
        return _told("interrupted", 130)


def _told(message: str, status: int) -> int:
    print("llasa:", " ".join(message.split()), file=sys.stderr)
    return status
