"""The one exception that speaks to the user."""


class UserError(Exception):
    """Something that the user can mend. The message is one line: what, where, valid values, the fix.

    The command line prints ``error: <message>`` without a traceback and exits with code 2.
    """
