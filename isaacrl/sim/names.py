"""Name patterns: full-match regular expressions over the names of a model's parts."""

import re
from collections.abc import Sequence

from isaacrl.errors import UserError
from isaacrl.suggest import did_you_mean, listing, nearest


def match(patterns: Sequence[str], names: Sequence[str], key: str) -> list[int]:
    """Indices of the names that any pattern matches in full, in the order of names.

    Raises: UserError (naming the configuration key) where a pattern is malformed or matches nothing.
    """
    found: set[int] = set()
    for pattern in patterns:
        try:
            hits = [i for i, name in enumerate(names) if re.fullmatch(pattern, name)]
        except re.error as e:
            raise UserError(f"{key}: '{pattern}' is not a regular expression ({e})") from None
        if not hits:
            near = nearest(pattern, names, count=3)
            rest = [n for n in dict.fromkeys(names) if n and n not in near]
            hint = did_you_mean(pattern, names)
            raise UserError(f"{key}: '{pattern}' matches nothing{hint}; there are: {listing(near + rest)}")
        found.update(hits)
    return sorted(found)


def by_pattern(value: float | dict[str, float], names: Sequence[str], key: str) -> list[float]:
    """A number for each name: one for all, or pattern -> number, of which the first that matches a name counts.

    Raises: UserError (naming the configuration key) where a pattern matches nothing or a name is left without a number.
    """
    if not isinstance(value, dict):
        return [float(value)] * len(names)
    found: dict[int, float] = {}
    for pattern, number in value.items():
        for i in match([pattern], names, key):
            found.setdefault(i, float(number))
    if missing := [name for i, name in enumerate(names) if i not in found]:
        raise UserError(f"{key}: no pattern matches joint '{missing[0]}'; add one for it, or '.*' at the end")
    return [found[i] for i in range(len(names))]
