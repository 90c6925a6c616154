"""Where configuration files come from, and the few things they mean beyond plain Hydra.

- The folders: `--config-dir`, `./conf`, installed packages with an entry point in group `isaacrl.conf`, isaacrl's own.
  The first that has a file wins; `config.yaml` itself is always isaacrl's.
- A file in task/ or asset/ is called by its name: `name` may be left out and must not differ.
- `override /asset: x` in a task file means the asset of the whole configuration, not a part of the task.
- A task file's section named after an algorithm (`ppo:`) appears to Hydra as `task_algo/<task>_<algo>`, which
  conf/config.yaml lays over `algo`.
"""

import copy
import functools
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins import basic_launcher, basic_sweeper  # noqa: F401  (they register themselves)
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.core_plugins.structured_config_source import StructuredConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from isaacrl import signatures
from isaacrl.errors import UserError
from isaacrl.schema import ALGORITHMS, Config
from isaacrl.suggest import one_line

GROUPS = ("task", "asset", "randomization", "algo", "sim", "logger", "experiment")


def conf_dir() -> Path:
    """isaacrl's own configuration: inside the package (wheel) or beside it (checkout)."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def search_dirs(config_dir: str | os.PathLike | None = None) -> list[Path]:
    """All configuration folders, the ones that win first.

    Raises: UserError where config_dir does not exist.
    """
    dirs = []
    if config_dir is not None:
        folder = Path(config_dir).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"--config-dir: no folder '{folder}'; give one that holds task/, asset/, experiment/, ...")
        dirs.append(folder)
    dirs += [Path("conf").resolve(), *_package_dirs(tuple(sys.path)), conf_dir()]
    return list(dict.fromkeys(d for d in dirs if d.is_dir()))


@functools.lru_cache(maxsize=4)
def _package_dirs(python_path: tuple[str, ...]) -> list[Path]:
    from importlib.metadata import entry_points

    found = [signatures.find_folder(point.value) for point in entry_points(group="isaacrl.conf")]
    return sorted(folder.resolve() for folder in found if folder is not None)


_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast, and not everywhere


class _Loader(_Safe):
    """YAML as OmegaConf reads it (1e-3 is a number, dates are text), by the fast parser; keys may not repeat."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


@functools.lru_cache(maxsize=512)
def _parse(path: str, modified: int) -> Any:
    return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML file as plain data, neither composed nor resolved.

    Raises: UserError naming the file and line.
    """
    try:
        data = copy.deepcopy(_parse(str(path), path.stat().st_mtime_ns))
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = ", ".join(p for p in (getattr(e, "context", None), getattr(e, "problem", None)) if p)
        raise UserError(f"{path}{line}: not valid YAML ({one_line(problem or e, 120)})") from None
    except (OSError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as e:
        raise UserError(f"{path}: cannot be read ({one_line(e, 120)})") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: must hold 'key: value' lines, not {one_line(data, 40)!r}")
    return data


def find_file(name: str, dirs: list[Path]) -> Path | None:
    """The file that a configuration name such as task/cartpole means."""
    if name.startswith("task_algo/"):
        name = next((f"task/{task}" for task, _ in _splits(name)), name)
    return next((p for d in dirs if (p := d / f"{name}.yaml").is_file()), None)


def _splits(name: str) -> list[tuple[str, str]]:
    """task_algo/<task>_<algo> as (task, algo)."""
    stem = name.removeprefix("task_algo/").removesuffix(".yaml")
    return [(stem[: -len(algo) - 1], algo) for algo in ALGORITHMS if stem.endswith(f"_{algo}")]


def read_merged(name: str, dirs: list[Path], seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A group's file with those it builds on (`defaults: [parent]`) laid under it, as plain data, for listings."""
    path = find_file(name, dirs)
    if path is None or name in seen:
        return {}
    data = read_yaml(path)
    defaults = data.pop("defaults", None) or []
    group, merged, choices = name.rpartition("/")[0], {}, {}
    for item in defaults:
        if isinstance(item, str) and item != "_self_":
            parent = read_merged(f"{group}/{item}", dirs, (*seen, name))
            choices |= parent.pop("overrides", {})
            merged = _merge(merged, parent)
        elif isinstance(item, dict):
            choices |= {k.removeprefix("override /"): v for k, v in item.items() if str(k).startswith("override /")}
    return {"name": name.rpartition("/")[2]} | _merge(merged, data) | {"overrides": choices}


def _merge(below: dict, above: dict) -> dict:
    out = dict(below)
    for k, v in above.items():
        out[k] = _merge(out[k], v) if isinstance(out.get(k), dict) and isinstance(v, dict) else v
    return out


class ConfSource(FileConfigSource):
    """A configuration folder, `conf://<folder>`, as Hydra sees it."""

    @staticmethod
    def scheme() -> str:
        return "conf"

    def is_config(self, config_path: str) -> bool:
        if config_path in ("config", "config.yaml"):
            return Path(self.path) == conf_dir()
        if config_path.startswith("task_algo/"):
            return bool(self._section(config_path))
        return super().is_config(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        if config_path.startswith("task_algo/"):
            section = OmegaConf.create(self._section(config_path))
            return ConfigResult(
                config=section, path=f"conf://{self.path}", provider=self.provider, header={"package": "algo"}
            )
        path = Path(self.path, self._normalize_file_name(config_path))
        data = read_yaml(path)
        try:
            header = self._get_header_dict(path.read_text(encoding="utf-8")[:512])
        except ValueError as e:
            raise UserError(f"{path}: {one_line(e)} (the first line may be '# @package _global_')") from None
        group = config_path.partition("/")[0]
        if group in ("task", "asset"):
            name = data.setdefault("name", path.stem)
            if name != path.stem:
                raise UserError(
                    f"{path}: name is '{one_line(name, 60)}', but the file is called {path.stem}.yaml; "
                    "leave name out or rename the file"
                )
        if group == "task" and isinstance(data.get("defaults"), list):
            data["defaults"] = [_lifted(item) for item in data["defaults"]]
        try:
            cfg = OmegaConf.create(data)
        except Exception as e:  # such as a broken interpolation
            raise UserError(f"{path}: {one_line(str(e).partition(chr(10))[0], 160)}") from None
        return ConfigResult(config=cfg, path=f"conf://{self.path}", provider=self.provider, header=header)

    def _section(self, config_path: str) -> dict[str, Any]:
        """A task's settings of an algorithm, those of the tasks that it builds on included."""
        for task, algo in _splits(config_path):
            if Path(self.path, "task", f"{task}.yaml").is_file():
                section = read_merged(f"task/{task}", [Path(self.path), *search_dirs()]).get(algo)
                return section if isinstance(section, dict) else {}
        return {}


def _lifted(item: Any) -> Any:
    """`override /asset: x` of a task file as Hydra must read it to mean the asset of the whole configuration."""
    if not isinstance(item, dict):
        return item
    groups = {f"override /{g}": f"override /{g}@_global_.{g}" for g in GROUPS}
    return {groups.get(k, k): v for k, v in item.items()}


def loader(dirs: list[Path]) -> ConfigLoaderImpl:
    """Hydra's loader over these folders and the schema."""
    version.setbase("1.3")
    for source in (FileConfigSource, ImportlibResourcesConfigSource, StructuredConfigSource, ConfSource):
        SourcesRegistry.instance().register(source)
    store = ConfigStore.instance()
    store.store("schema", Config)
    for name, schema in ALGORITHMS.items():
        store.store(f"base_{name}", schema, group="algo", package="algo")
    return ConfigLoaderImpl(search_path(dirs))


def search_path(dirs: list[Path]) -> ConfigSearchPathImpl:
    """Hydra's search path: its own configuration, the folders, the schema."""
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    for d in dirs:
        path.append("main", f"conf://{d}")
    path.append("schema", "structured://")
    return path
