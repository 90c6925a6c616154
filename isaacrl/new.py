"""`isaacrl new asset|task NAME`: a commented starting point in ./conf, out of a model file."""

import re
from pathlib import Path

from isaacrl import config
from isaacrl.conf_source import search_dirs
from isaacrl.errors import UserError
from isaacrl.files import write_atomic
from isaacrl.options import NewOptions
from isaacrl.suggest import did_you_mean, listing, one_line

KINDS = {"asset": "path=FILE", "task": "asset=NAME"}


def new(args: list[str]) -> int:
    """Write the file and say what to do next. Raises: UserError; nothing is overwritten."""
    words = [a for a in args if "=" not in a]
    kind = words[0] if words else ""
    if kind not in KINDS:
        given = f"'{one_line(kind, 40)}' cannot be made" if kind else "what?"
        raise UserError(f"new: {given}; write new asset NAME path=FILE, or new task NAME asset=NAME")
    options, rest = config.read_options(NewOptions, [a for a in args if "=" in a])
    keys = ("path", "trust", "floating") if kind == "asset" else ("asset",)
    if rest:
        name = rest[0].partition("=")[0]
        raise UserError(
            f"new {kind}: unknown key '{one_line(name, 40)}'{did_you_mean(name, keys)}; it takes {listing(keys)}"
        )
    for key in set(NewOptions.__dataclass_fields__) - set(keys):
        if getattr(options, key) not in (None, False):
            raise UserError(f"new {kind}: does not take {key}; it takes {listing(keys)}")
    if len(words) != 2:
        raise UserError(f"new {kind}: needs one name, got {len(words) - 1}; write new {kind} NAME {KINDS[kind]}")
    name, (key, _, _) = words[1], KINDS[kind].partition("=")
    if getattr(options, key) is None:
        raise UserError(f"new {kind}: {key} is missing; write new {kind} {one_line(name, 40)} {KINDS[kind]}")
    file = _target(kind, name)
    if kind == "asset":
        text = _asset(name, options)
        following = f"isaacrl new task {name}_task asset={name}"
    else:
        text = _task(name, options.asset)
        following = f"isaacrl train task={name}"
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_atomic(file, text)
    except OSError as e:
        raise UserError(f"new {kind}: cannot write {file}: {one_line(e)}") from None
    print(f"wrote {file}: read it through; its guesses are marked\nnext: {following}")
    return 0


def _target(kind: str, name: str) -> Path:
    """The new file. Raises: UserError where the name is taken."""
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise UserError(f"new {kind}: '{one_line(name, 40)}' is no name; use letters, digits and _, a letter first")
    file = Path("conf") / kind / f"{name}.yaml"
    if file.exists():
        raise UserError(f"new {kind}: {file} exists and is not overwritten; choose another name, or move it away")
    if taken := next((d for d in search_dirs() if (d / kind / file.name).exists()), None):
        raise UserError(f"new {kind}: the name '{name}' is taken by {taken / kind / file.name}; choose another one")
    return file


def _asset(name: str, options: NewOptions) -> str:
    from isaacrl.new_asset import asset_yaml
    from isaacrl.sim.assets import compile_spec, load

    asset = load(str(options.path), trust=options.trust, floating=options.floating)
    return asset_yaml(name, asset, compile_spec(asset.spec, asset.file), options)


def _task(name: str, asset: str | None) -> str:
    from omegaconf import OmegaConf

    from isaacrl.new_task import task_yaml
    from isaacrl.sim.scene import make_scene

    cfg = config.compose([f"asset={asset}"])
    return task_yaml(name, str(asset), cfg.asset, make_scene(cfg.asset, OmegaConf.create({"physics_dt": 0.005})))
