"""Nearest names, for errors that say what was meant."""

from collections.abc import Iterable

SHOWN = 30  # a list of valid names longer than this is cut


def distance(a: str, b: str) -> int:
    """Edits between two words: insert, delete, replace, or swap neighbours (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[j] = min(row[j], last[j - 2] + 1)
    return row[-1]


def nearest(name: str, names: Iterable[str], count: int = 1) -> list[str]:
    """Up to count names that may have been meant, the nearest first; none if all are far."""
    name = name[:60].lower()
    ranked = []
    for other in sorted(set(names)):
        low = other.lower()
        edits = distance(name, low[:60])
        inside = len(name) >= 3 and name in low or len(low) >= 3 and low in name
        if edits <= max(1, (len(name) + 2) // 3) or inside:
            ranked.append((edits, abs(len(low) - len(name)), other))
    return [other for _, _, other in sorted(ranked)[:count]]


def did_you_mean(name: str, names: Iterable[str], count: int = 1) -> str:
    """'; did you mean x?', or nothing."""
    found = nearest(name, names, count)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def listing(names: Iterable[str]) -> str:
    """Names in a line, cut where there are many."""
    names = list(names)
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) + more) or "none"


def one_line(text: object, limit: int = 200) -> str:
    """Any text as one short line of printable characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
