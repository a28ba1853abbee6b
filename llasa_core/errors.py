"""The one exception for input that a user can correct."""


class InputError(ValueError):
    """Bad input: the message is one line that names the file, the line or key, and what was expected.

    The command line prints it and exits with status 2; library callers may catch it.
    """
