"""One step of engine `warp`'s kernel beside C MuJoCo, 2,000 states a model, as a table: 13 minutes on one CPU core.

python benchmarks/physics_agreement.py [output of pytest]

Runs tests/test_fused_agreement.py with ISAACRL_FULL_TESTS=1, or reads what it printed. Models of gymnasium, dm_control
and mjlab are among them where these packages are installed.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from common import RESULTS, machine

COMMAND = [sys.executable, "-m", "pytest", "-s", "-q", "--no-header", "tests/test_fused_agreement.py", "-k", "step_is"]
_BINS = ("0", "1-3", "4-7", "8-15", "16-31", r"32\+")
_ROW = re.compile(
    r"^[.s]*(\S.*?): worlds by active rows: "
    + ", ".join(rf"{rows}: (\d+)" for rows in _BINS)
    + r"; (\d+%) with 4 or more, (\d+) stuck\n +float64: (\S+) (\S+),.*\n +float32: qacc (\S+), 99% (\S+), most (\S+)$",
    re.MULTILINE,
)
HEAD = """# One step of the fused kernel beside C MuJoCo's mj_step

`python benchmarks/physics_agreement.py`:
{machine}.

One step from each of 2,000 random states a model; solver tolerance 1e-15 in float64, 1e-6 in float32. Rows: active
rows of contacts and limits, in worlds. Errors: the largest difference, relative to the field's largest value in that
world (at least 1). float64: the worst of all fields and worlds. Contacts and rows are as many as in C in every world
in float64, and in at least 1,998 of 2,000 in float32. Left out are worlds in which C MuJoCo's own solver gave up far
from the minimum ("stuck").

| model | rows 0 | 1-3 | 4-7 | 8-15 | 16-31 | 32+ | 4 or more | stuck | float64 worst (field) \
| float32 qacc median | 99% | most |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""
TAIL = """
Not covered by engine `warp` of what these packages ship: gymnasium humanoid, humanoidstandup (2 tendons), pusher,
pusher_v5 (capsule-cylinder pairs); dm_control ball_in_cup, fish, manipulator, point_mass, quadruped, stacker, dog
(tendons; dog has 85 dofs too), finger (pairs with cylinders), humanoid_CMU (pairs with ellipsoids), lqr (its bodies
are made in Python); mjlab go1 (pairs with boxes), yam (equality, boxes).

Float32 is worst where two capsules' centre lines nearly meet, so that rounding turns the normal (scene, g1,
humanoid), and in dm_control's swimmer, which has a body with an inertia of 3e-7.
"""


def table(text: str) -> list[str]:
    """A line a model, from what the test printed."""
    lines = []
    for name, *rows, share, stuck, field, worst, median, most99, most in _ROW.findall(text):
        cells = [name, *rows, share, stuck, f"{worst} ({field})", median, most99, most]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    if len(sys.argv) > 1:
        text = Path(sys.argv[1]).read_text()
    else:
        root = Path(__file__).parent.parent
        done = subprocess.run(
            COMMAND, cwd=root, env=os.environ | {"ISAACRL_FULL_TESTS": "1"}, capture_output=True, text=True
        )
        text = done.stdout
        if done.returncode:
            sys.exit(text[-3000:])
    lines = table(text)
    if not lines:
        sys.exit("no table: the test printed nothing that this script knows")
    facts = ", ".join(f"{k} {v}" for k, v in machine().items() if k not in ("gpu", "driver"))
    path = RESULTS / "physics_agreement.md"
    path.write_text(HEAD.format(machine=facts) + "\n".join(lines) + "\n" + TAIL)
    print(f"{path}: {len(lines)} models")


if __name__ == "__main__":
    main()
