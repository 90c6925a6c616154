"""Name patterns: full-match regular expressions over the names of a model's parts."""

import difflib
import re
from collections.abc import Sequence

from isaacrl.errors import UserError


def match(patterns: Sequence[str], names: Sequence[str], key: str) -> list[int]:
    """Indices of the names that any pattern matches, in the order of names.

    Raises: UserError (naming the configuration key) where a pattern is malformed or matches nothing.
    """
    found = set()
    for pattern in patterns:
        try:
            hits = [i for i, name in enumerate(names) if re.fullmatch(pattern, name)]
        except re.error as e:
            raise UserError(f"{key}: '{pattern}' is not a regular expression ({e})") from None
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f", did you mean '{near[0]}'?" if near else "."
            raise UserError(f"{key}: '{pattern}' matches nothing{hint} There are: {', '.join(names) or 'none'}")
        found.update(hits)
    return sorted(found)
