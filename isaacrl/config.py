"""From YAML files and overrides to one checked configuration, and back from a run folder.

    cfg = compose(["task=cartpole", "algo.lr=1e-3"])
    cfg = load_stored("outputs/cartpole/.../config.yaml", ["num_envs=4"])

Imports neither torch nor the simulator, so that mistakes are reported at once.
"""

import dataclasses
import gc
import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.default_element import GroupDefault
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isaacrl import overrides as cli
from isaacrl.check import check, check_section, check_values, find_field, shown, walk
from isaacrl.conf_source import GROUPS, conf_dir, find_file, loader, read_yaml, search_dirs
from isaacrl.errors import KeyedError, UserError
from isaacrl.schema import ALGORITHMS, Config
from isaacrl.suggest import listing, one_line

__all__ = ["GROUPS", "check", "compose", "conf_dir", "dump", "finish", "load_stored", "read_options", "search_dirs"]

LARGEST_FILE = 1_000_000  # bytes of a stored configuration


def _gpu_here() -> bool:
    """Whether torch will find an NVIDIA GPU, as far as can be told without importing it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    devices = [*glob.glob("/dev/nvidia[0-9]*"), *glob.glob("/dev/dxg")]  # the second is that of WSL
    try:
        return bool(devices) and not hidden and not metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False


def _worlds(
    device: str, num_envs: int, gpu_num_envs: int | None, algo: int | None = None, gpu_algo: int | None = None
) -> int:
    """The number of worlds for a device, the algorithm's or else the task's; `auto` means what is there."""
    on_gpu = _gpu_here() if device == "auto" else device != "cpu"
    return (on_gpu and (gpu_algo or algo or gpu_num_envs)) or algo or num_envs


OmegaConf.register_new_resolver("worlds", _worlds, replace=True)


def compose(overrides: list[str], config_dir: str | os.PathLike | None = None, *, resolve: bool = True) -> DictConfig:
    """The configuration of a training run: files composed, overrides applied, resolved and checked.

    Precedence, lowest first: schema, conf/algo, the task's own section for the algorithm, experiment, overrides.
    resolve=False leaves interpolations in place (for showing; the checks are done all the same).

    Raises: UserError naming the key, the valid values, the nearest name, and the file that set it.
    """
    with _quiet_gc():
        dirs = search_dirs(config_dir)
        hydra = loader(dirs)
        parsed = [o for o in cli.parse(list(overrides), hydra) if not cli.is_hydra(o)]
        cli.refuse_sweeps(parsed)
        return _compose(hydra, parsed, dirs, resolve)


def _compose(hydra: ConfigLoaderImpl, parsed: list[Override], dirs: list[Path], resolve: bool) -> DictConfig:
    groups = [o for o in parsed if cli.is_group(o)]
    values = [o for o in parsed if not cli.is_group(o)]
    for o in groups:
        cli.check_group(o, hydra)
    repo = CachingConfigRepository(hydra.repository)
    defaults: Any = None
    try:
        # What hydra.compose() does, without Hydra's own configuration, which would take as long again.
        defaults = create_defaults_list(repo, "config", groups, prepend_hydra=False, skip_missing=False)
        cfg = hydra._compose_config_from_defaults_list(defaults.defaults, repo)
    except UserError:
        raise
    except Exception as e:
        raise _composition_error(e, dirs, hydra, repo, groups) from None
    OmegaConf.set_struct(cfg, True)
    for o in values:
        cli.apply(cfg, o)
    try:
        whole = finish(cfg)
    except KeyedError as e:
        if not any(
            f"{e.key}.".startswith(f"{k}.") or f"{k}.".startswith(f"{e.key}.") for k in (o.key_or_group for o in values)
        ):
            origin = _origin(e.key, hydra, defaults.defaults, repo, dirs)
            if origin is not None:
                raise KeyedError(e.key, f"{str(e).removeprefix(e.key + ': ')} [set in {_shown_path(origin)}]") from None
        raise
    if resolve:
        return whole
    return _without_sections(cfg)


def finish(cfg: DictConfig) -> DictConfig:
    """What Hydra composed -> what isaacrl works with: resolved, complete, checked, closed to new keys."""
    cfg = _without_sections(cfg)
    for key in _missing(cfg):
        f, _ = find_field(key)
        meaning = f" ({f.metadata.get('help')})" if f is not None and f.metadata.get("help") else ""
        raise KeyedError(key, f"missing{meaning}; set it in a configuration file or give {key}=VALUE")
    _resolve(cfg)
    check(cfg)
    OmegaConf.set_struct(cfg, True)
    return cfg


def _without_sections(cfg: DictConfig) -> DictConfig:
    """A copy without the task file's sections for algorithms, which are in `algo` by now."""
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    for name in ALGORITHMS:
        if isinstance(cfg.get("task"), DictConfig):
            OmegaConf.set_struct(cfg.task, False)
            cfg.task.pop(name, None)
    return cfg


def _missing(cfg: DictConfig) -> list[str]:
    return [key for key, value in walk(OmegaConf.to_container(cfg, resolve=False)) if value == "???"]


def _resolve(cfg: DictConfig) -> None:
    try:
        OmegaConf.resolve(cfg)
        return
    except (OmegaConfBaseException, RecursionError, ValueError, KeyError, TypeError):
        pass
    for key, value in walk(OmegaConf.to_container(cfg, resolve=False)):  # find the first one that fails
        if isinstance(value, str) and "${" in value:
            try:
                OmegaConf.select(cfg, key, throw_on_missing=True, throw_on_resolution_failure=True)
            except RecursionError:
                raise KeyedError(key, f"{shown(value)} refers to itself, directly or in a circle") from None
            except Exception as e:
                f, rest = find_field(key)
                if type(e).__name__ == "ValidationError" and f is not None and not rest:
                    raise KeyedError(
                        key, f"{shown(value)} does not give a valid value ({one_line(str(e).splitlines()[0], 100)})"
                    ) from None
                if "Recursive" in str(e):
                    raise KeyedError(key, f"{shown(value)} refers to itself, directly or in a circle") from None
                raise KeyedError(
                    key, f"{shown(value)} cannot be resolved ({one_line(str(e).splitlines()[0], 100)})"
                ) from None
    raise UserError("the configuration's interpolations cannot be resolved; `--cfg job` shows them")


def _composition_error(
    e: Exception, dirs: list[Path], hydra: ConfigLoaderImpl, repo: CachingConfigRepository, groups: list[Override]
) -> UserError:
    """An error of Hydra while it puts the files together, in our words, with the file."""
    if isinstance(e, RecursionError):
        chosen = ", ".join(one_line(o.input_line, 60) for o in groups) or "the default choices"
        return UserError(f"configuration files build on each other in a circle (defaults lists; chosen: {chosen})")
    text = str(e)
    where = text[4:].partition("'")[0] if text.startswith("In '") else ""
    missing = getattr(e, "missing_cfg_file", None) if isinstance(e, MissingConfigException) else None
    if missing:
        group, _, name = missing.partition("/")
        place = _place(find_file(_overrider(group, name, repo) or where, dirs))
        if group in GROUPS:
            return UserError(f"{cli.unknown_option(group, name, cli.options(group, hydra))}{place}")
        return UserError(f"there is no configuration file {missing}.yaml{place}")
    place = _place(find_file(where, dirs))
    cause: Any = e
    while cause is not None and not getattr(cause, "full_key", None):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return UserError(f"{cli.explain(cause, str(cause.full_key), getattr(cause, 'value', None), 'ppo')}{place}")
    reason = text.partition(": ")[2] if place else text
    return UserError(f"the configuration does not compose: {one_line(reason or type(e).__name__, 160)}{place}")


def _overrider(group: str, name: str, repo: CachingConfigRepository) -> str | None:
    """The configuration whose `override /group: name` chose an option."""
    for path, result in repo.cache.items():
        for d in (result.defaults_list or []) if result is not None else []:
            if isinstance(d, GroupDefault) and d.override and (d.group or "").strip("/") == group and d.value == name:
                return path.removeprefix("config_path=")
    return None


def _origin(
    key: str, hydra: ConfigLoaderImpl, defaults: Any, repo: CachingConfigRepository, dirs: list[Path]
) -> Path | None:
    """The file that set a key last, or that holds the nearest section above it."""
    files = []
    for default in reversed(defaults):
        if default.config_path != "schema" and not default.config_path.startswith("algo/base_"):
            loaded = hydra._load_single_config(default=default, repo=repo).config
            files.append((default.config_path, {k for k, _ in walk(OmegaConf.to_container(loaded, resolve=False))}))
    while key:
        for name, keys in files:
            if key in keys:
                return find_file(name, dirs)
        key = key.rpartition(".")[0]
    return None


def _place(path: Path | None) -> str:
    return f" [in {_shown_path(path)}]" if path else ""


def _shown_path(path: Path) -> str:
    cwd = Path.cwd()
    return str(path.relative_to(cwd) if path.is_relative_to(cwd) else path)


@contextmanager
def _quiet_gc() -> Iterator[None]:
    """Composing makes many small objects that live on: collecting garbage meanwhile only costs time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# --- stored configurations -------------------------------------------------------------------------------------------


def dump(cfg: DictConfig) -> str:
    """The YAML of a configuration, as load_stored takes it."""
    return OmegaConf.to_yaml(cfg, resolve=True)


def load_stored(
    path: str | os.PathLike, overrides: Sequence[str] = (), trust: bool = False, *, training: bool = True
) -> DictConfig:
    """A run's config.yaml as data, with overrides on top. training=False leaves out what only training needs.

    The file is not trusted: it may not construct objects, interpolate, or (unless trust) name code outside isaacrl.

    Raises: UserError naming the file or the key.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: larger than {LARGEST_FILE} bytes: not a configuration that isaacrl wrote")
        if "*" in (text := path.read_text(encoding="utf-8")) and _has_alias(text):
            raise UserError(f"{path}: holds YAML aliases, which isaacrl does not write")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read ({one_line(e, 120)})") from None
    data = read_yaml(path)
    try:
        cfg = _from_data(data, trust)
    except KeyedError as e:
        raise UserError(f"{path}: {e}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    parsed = cli.parse(list(overrides))
    cli.refuse_sweeps(parsed)
    for o in parsed:
        if cli.is_hydra(o):
            raise KeyedError(one_line(o.key_or_group), "Hydra's settings do not apply to a stored run")
        if cli.is_group(o):
            raise KeyedError(
                one_line(o.key_or_group),
                f"a stored run keeps its {one_line(o.key_or_group)}; set single keys such as "
                f"{o.key_or_group}.KEY=VALUE, or start anew without run=",
            )
        cli.apply(cfg, o)
    _resolve(cfg)
    if not training:  # a schedule counts from the start of a run, and these look at its end
        for node in [*cfg.task.events.values(), *cfg.randomization.values()]:
            if isinstance(node, DictConfig) and "schedule" in node:
                node.schedule = None
    check(cfg, training=training)
    return cfg


def _has_alias(text: str) -> bool:
    import yaml

    try:
        return any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
    except yaml.YAMLError:
        return False  # reported with its line when it is read


def _from_data(data: dict[str, Any], trust: bool) -> DictConfig:
    """Plain untrusted data -> the typed configuration."""
    for key, value in walk(data):
        if isinstance(value, str) and "${" in value:
            raise KeyedError(
                one_line(key), f"{shown(value)} is an interpolation: a stored configuration holds only values"
            )
    check_values(data)
    if not trust:
        _refuse_code(data)
    algo = data.get("algo")
    name = algo.get("name") if isinstance(algo, dict) else None
    if name not in ALGORITHMS:
        raise KeyedError("algo.name", f"{shown(name)} is no algorithm; there is {listing(ALGORITHMS)}")
    check_section(Config, data, "", name)
    missing = [f for f in ("task", "asset", "num_envs") if f not in data]
    if missing:
        raise KeyedError(missing[0], "missing: not a configuration that isaacrl wrote")
    base = OmegaConf.structured(Config)
    base.algo = OmegaConf.structured(ALGORITHMS[name])
    try:
        cfg: Any = OmegaConf.merge(base, OmegaConf.create(data, flags={"allow_objects": False}))
    except OmegaConfBaseException as e:
        raise cli.explain(e, str(e.full_key), None, name) from None
    OmegaConf.set_struct(cfg, False)
    cfg = _without_sections(cfg)
    if absent := _missing(cfg):
        raise KeyedError(absent[0], "missing: not a configuration that isaacrl wrote")
    OmegaConf.set_struct(cfg, True)
    return cfg


def _refuse_code(data: dict[str, Any]) -> None:
    """Other people's runs are data: their code runs, and their models leave their folders, only on the user's word."""
    for key, value in walk(data):
        if key == "asset.trust" and value not in (False, None):
            raise KeyedError(key, "lets the model read files outside its own folder; add trust=true if you trust it")
        names_code = key == "task.env" or key.rpartition(".")[2] == "fn"
        if names_code and value is not None and not (key != "task.env" and str(value).isidentifier()):
            raise KeyedError(
                one_line(key), f"{shown(value)} names code outside isaacrl; add trust=true if you trust that code"
            )


def read_options(cls: type, texts: list[str]) -> tuple[Any, list[str]]:
    """A verb's own keys and the rest: (an instance of the dataclass cls, the overrides of the configuration)."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    rest = []
    for text in texts:
        name, equals, value = text.partition("=")
        f = fields.get(name.lstrip("+"))
        if f is None:
            rest.append(text)
        elif equals and f.type in (str, str | None):  # names and paths are taken as they stand
            quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
            values[f.name] = value[1:-1] if quoted else None if value == "null" and f.type is not str else value
        else:
            (o,) = cli.parse([text])
            cli.refuse_sweeps([o])
            values[f.name] = o.value()
    check_values(values)
    check_section(cls, values, "", "ppo")
    return cls(**values), rest
