"""The one exception that speaks to the user."""


class UserError(Exception):
    """Something that the user can mend. The message is one line: what, where, valid values, the fix.

    The command line prints ``error: <message>`` without a traceback and exits with code 2.
    """


class KeyedError(UserError):
    """A mistake at one configuration key, so that the file that set it can be named as well."""

    def __init__(self, key: str, message: str):
        super().__init__(f"{key}: {message}")
        self.key = key


class Absent(UserError):
    """The robot has nothing of the kind that a term acts on; an entry marked `optional: true` is then left out."""
