"""The exceptions that a command answers with one line: input that a user can correct, and a run
that failed; and the checks of settings that raise them.
"""

import contextlib
import fnmatch
import functools
import math
import os
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple


class InputError(ValueError):
    """Bad input: the message is one line that names the file, the line or key, and what was
    expected.

    The command line prints it and exits with status 2; library callers may catch it.
    """


class DivergedError(FloatingPointError):
    """A loss is not finite at `step` (from 1); the message names the utterances that it read."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


# A missing, unwritable or unreadable file, wherever it is noticed.
BAD_INPUT = (InputError, OSError, UnicodeError)


def guarded(handle: Callable[[], int | None]) -> int:
    """`handle()` as an exit status, with one line on standard error in place of the traceback of
    what can be expected.

    Bad input is 2, a run that diverged 1, Ctrl-C 130, a closed pipe 141, SIGTERM 143, and a signal
    ends the worker processes; a fault of the program stays a traceback.
    """
    from llasa_core.processes import Interrupted, Terminated, leave_now, signals_end_workers

    try:
        with signals_end_workers():
            status = handle() or 0
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Also silences the interpreter's own last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BAD_INPUT as error:
        named = isinstance(error, OSError) and error.filename is not None
        return _told(f"{error.filename}: {error.strerror}" if named else str(error), 2)
    except DivergedError as error:
        return _told(str(error), 1)
    except Interrupted:
        leave_now(_told("interrupted", 130))
    except KeyboardInterrupt:
        return _told("interrupted", 130)
    except Terminated:
        leave_now(_told("terminated", 143))


def _told(message: str, status: int) -> int:
    print("llasa:", " ".join(message.split()), file=sys.stderr)
    return status


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the annotated type; numbers must be finite, booleans are none."""
    for option in _alternatives(hint):
        kind = typing.get_origin(option) or option
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return math.isfinite(value)
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return True
    return False


def describe_type(hint: Any) -> str:
    """The annotation in the words of an error message: "a whole number or null"."""
    names = {
        float: "a number",
        int: "a whole number",
        str: "text",
        bool: "true or false",
        list: "a list",
        dict: "an object",
    }
    options = [typing.get_origin(option) or option for option in _alternatives(hint)]
    return " or ".join(
        names.get(option, "null" if option is types.NoneType else str(option)) for option in options
    )


def registered(what: str, registry: Mapping[str, str], name: str, also: str = "") -> Any:
    """The object "module:object" that a registry has for a name, imported when it is asked for.

    A key may be a pattern (`*`: anything); the first one that fits counts. Raises InputError with
    the names that there are, and what else is known (`also`).
    """
    for pattern, place in registry.items():
        if fnmatch.fnmatchcase(name, pattern):
            return pkgutil.resolve_name(place)
    raise InputError(f"{what} {name!r} is unknown, expected {names_in(registry)}{also}")


@contextlib.contextmanager
def needs_extra(what: str, extra: str, package: str) -> Iterator[None]:
    """InputError where an import inside fails: `what` needs `package`, which `extra` installs."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{what} needs {package} ({error}), expected: pip install 'llasa-core[{extra}]'"
        ) from None


def names_in(registry: Mapping[str, Any]) -> str:
    """The names of a registry in a sentence; "or a folder" where a pattern takes any."""
    names = [name for name in registry if name.strip("*/")]
    return ", ".join(names) + (" or a folder" if len(names) < len(registry) else "")


class Bound(NamedTuple):
    """What a value of the right type must hold, and the words for it after "a number .."."""

    holds: Callable[[Any], bool]
    words: str


def at_least(low: float) -> Bound:
    """low or more."""
    return Bound(lambda value: value >= low, f"of at least {low}")


def above(low: float, most: float = math.inf) -> Bound:
    """More than low, and at most `most`."""
    words = f"above {low}" if most == math.inf else f"above {low} and at most {most}"
    return Bound(lambda value: low < value <= most, words)


def between(low: float, high: float) -> Bound:
    """low to high, both included."""
    return Bound(lambda value: low <= value <= high, f"from {low} to {high}")


def one_of(*names: str) -> Bound:
    """One of some texts."""
    return Bound(lambda value: value in names, f"that is {' or '.join(map(repr, names))}")


def check_value(where: str, value: Any, hint: Any, bound: Bound | None = None) -> None:
    """InputError, which `where` opens, for a value that has not the type of the annotation `hint`
    or is out of its bound; None, where the annotation allows it, has no bound.
    """
    if fits(value, hint) and (value is None or bound is None or bound.holds(value)):
        return
    kinds = [kind for kind in _alternatives(hint) if kind is not types.NoneType]
    words = [" or ".join(map(describe_type, kinds)), *([bound.words] if bound else [])]
    words += ["or null"] if types.NoneType in _alternatives(hint) else []
    raise InputError(f"{where} is {value!r}, expected {' '.join(words)}")


def check_fields(settings: Any, what: str, **bounds: Bound) -> None:
    """InputError, which names the field, where a value of a dataclass has not the type of its
    annotation or is out of its bound.
    """
    for name, hint in _hints(type(settings)).items():
        check_value(f"{what}: `{name}`", getattr(settings, name), hint, bounds.get(name))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
