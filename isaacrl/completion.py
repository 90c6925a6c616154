"""Shell completion. Hydra's own, told about verbs: it knows only `program key=value`."""

import contextlib
import dataclasses
import io
import os
import re

from isaacrl.errors import UserError
from isaacrl.usage import VERBS

SHELLS = ("bash", "fish", "zsh")
LISTED = {
    "list": ("tasks", "assets", "algos"),
    "help": tuple(VERBS),
    "new": ("asset", "task", "path=", "asset=", "trust=", "floating="),
}


def run(args: list[str]) -> int:
    """`install=SHELL` prints the script to evaluate; `query=SHELL` answers it, from the environment's COMP_LINE."""
    action, _, shell = (args[0] if len(args) == 1 else "").partition("=")
    if action not in ("install", "uninstall", "query") or shell not in SHELLS:
        raise UserError(f"--shell-completion: write install=SHELL or uninstall=SHELL, SHELL one of {', '.join(SHELLS)}")
    if action != "query":
        print(_hydra(f"{action}={shell}"), end="")
        return 0
    words = answers(os.environ.get("COMP_LINE", ""))
    print(("\n" if shell == "fish" else " ").join(words))
    return 0


def answers(line: str) -> list[str]:
    """What may follow on a command line."""
    parts = re.match(r"\s*\S+(?:\s+(\S*)(\s.*)?)?$", line, re.DOTALL)
    verb, rest = (parts[1] or "", parts[2]) if parts else ("", None)
    if rest is None:
        return [v for v in VERBS if v.startswith(verb)]
    word = "" if rest[-1:].isspace() else rest.split()[-1]
    if verb in LISTED:
        return [x for x in LISTED[verb] if x.startswith(word)]
    from isaacrl.options import OPTIONS

    if verb not in OPTIONS:
        return []
    os.environ["COMP_LINE"] = f"isaacrl {rest.lstrip()}"
    own = [f"{f.name}=" for f in dataclasses.fields(OPTIONS[verb]) if f"{f.name}=".startswith(word)]
    found = [w for w in _hydra("query=bash").split() if not w.startswith(("algo=base_", "hydra", "task_algo"))]
    return list(dict.fromkeys(own + found))


def _hydra(action: str) -> str:
    """What Hydra's completion plugin prints; nothing where the line so far makes no sense to it."""
    from hydra.core.global_hydra import GlobalHydra

    from isaacrl.sweep import open_hydra

    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            open_hydra(None).shell_completion(config_name="config", overrides=[action])
    except (Exception, SystemExit):
        if not action.startswith("query"):
            raise
        return ""
    finally:
        GlobalHydra.instance().clear()
    return out.getvalue()
