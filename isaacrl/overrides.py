"""Overrides of the command line (`key=value`, `group=option`, `~key`): Hydra's grammar, errors in our words."""

from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from isaacrl import check
from isaacrl.conf_source import GROUPS
from isaacrl.errors import KeyedError, UserError
from isaacrl.schema import ALGORITHMS
from isaacrl.suggest import did_you_mean, listing, one_line

GRAMMAR = ("token recognition", "viable alternative", "mismatched input", "extraneous input", "missing ")


def parse(texts: list[str], loader: ConfigLoaderImpl | None = None) -> list[Override]:
    """Overrides as Hydra reads them, with the prefixes that isaacrl makes needless put right (see normal_form)."""
    parser = OverridesParser.create(config_loader=loader)
    return [_parse(parser, text) for text in texts]


def _parse(parser: OverridesParser, text: str) -> Override:
    shown = one_line(text, 60)
    try:
        override = parser.parse_override(text)
        override = parser.parse_override(normal_form(override))
        override.config_loader = parser.config_loader
    except (HydraException, ValueError, RecursionError, ArithmeticError) as e:
        reason = one_line((getattr(e, "message", "") or str(e)).partition("\n")[0], 120)
    else:
        if override.key_or_group:
            return override
        reason = "no key"
    if text.isidentifier():
        loader: Any = parser.config_loader
        is_task = loader is not None and loader.repository.config_exists(f"task/{text}")
        hint = f"; did you mean task={text}?" if is_task else f"; write {text}=VALUE"
        raise UserError(f"'{shown}': no value given{hint}")
    if any(words in reason for words in GRAMMAR):
        reason = "it does not parse"
    raise UserError(
        f"'{shown}' is not of the form key=value ({reason}); "
        "lists are [a,b], and text with special characters is quoted: key=\"'text'\""
    )


def is_group(o: Override) -> bool:
    """Whether an override chooses an option of a configuration group rather than setting a value."""
    return o.key_or_group in GROUPS and not isinstance(o._value, dict) or "/" in o.key_or_group or o.package is not None


def is_hydra(o: Override) -> bool:
    """Whether an override is Hydra's own business."""
    return o.is_hydra_override() or o.key_or_group == "hydra"


def normal_form(o: Override) -> str:
    """An override's text with Hydra's `+` and `++` where they are needed: in tables, which take new keys."""
    text = o.input_line or ""
    if is_group(o):
        return text.lstrip("+") if o.key_or_group in GROUPS else text
    if o.is_delete() or is_hydra(o):
        return text
    f, rest = check.find_field(o.key_or_group)
    whole = isinstance(o._value, dict) and len(o._value) > 0  # several entries at once
    in_table = f is not None and check.is_table(f) and (rest or whole)
    return ("++" if in_table else "") + text.lstrip("+")


def refuse_sweeps(overrides: list[Override]) -> None:
    """Several values for one key make sense only in a sweep."""
    for o in overrides:
        if o.is_sweep_override():
            text = one_line(o.input_line, 60).lstrip("+")
            key, _, values = text.partition("=")
            raise KeyedError(
                o.key_or_group,
                f"'{values}' stands for several values; add -m to train one after another "
                f"(isaacrl train -m {text}), or write a list as {key}=[{values}]",
            )


def check_group(o: Override, loader: ConfigLoaderImpl) -> None:
    """Raise UserError where a group's option does not exist."""
    group, value = o.key_or_group, o.value()
    if group not in GROUPS and not loader.repository.group_exists(group):
        raise KeyedError(one_line(group), f"unknown group; there is: {listing(GROUPS)}{did_you_mean(group, GROUPS)}")
    if o.package is not None:
        raise KeyedError(one_line(group), f"a group has a fixed place: leave out @{one_line(o.package)}")
    if group not in GROUPS:
        return
    if o.is_delete():
        if group != "experiment":
            raise KeyedError(group, f"cannot be removed; choose another one: {listing(options(group, loader))}")
        return
    for option in value if isinstance(value, list) else [value]:
        if option is None and group == "experiment":
            continue
        if not isinstance(option, str) or not loader.repository.config_exists(f"{group}/{option}"):
            raise unknown_option(group, option, options(group, loader))


def options(group: str, loader: ConfigLoaderImpl) -> list[str]:
    """The names that a group offers, schemas left out."""
    return [o for o in loader.get_group_options(group) if not (group == "algo" and o.startswith("base_"))]


def unknown_option(group: str, name: Any, known: list[str]) -> KeyedError:
    """The error for `task=cartpol`."""
    hint = did_you_mean(str(name), known, 3)
    see = "; `isaacrl list` shows all" if group in ("task", "asset", "algo") else ""
    return KeyedError(group, f"there is no {group} {check.shown(name)}; there is: {listing(known)}{see}{hint}")


def apply(cfg: DictConfig, o: Override) -> None:
    """Set, add or remove one value of a configuration in place.

    Raises: UserError that says what is wrong with the key or the value.
    """
    key, value = o.key_or_group, o.value()
    algo = OmegaConf.select(cfg, "algo.name", throw_on_missing=False) or "ppo"
    f, rest = check.find_field(key, algo)
    for name in ALGORITHMS:
        if key == f"task.{name}" or key.startswith(f"task.{name}."):
            raise KeyedError(
                key, f"holds the task file's settings of {name}; set algo{key.removeprefix(f'task.{name}')} instead"
            )
    if f is None or (rest and not check.is_table(f) and not _is_list(cfg, key)):
        raise check.unknown_key(key, algo)
    if o.is_delete():
        _delete(cfg, o, f, rest)
        return
    try:
        ConfigLoaderImpl._apply_overrides_to_config([o], cfg)
    except Exception as e:
        raise explain(e, key, value, algo) from None


def _is_list(cfg: DictConfig, key: str) -> bool:
    return isinstance(OmegaConf.select(cfg, key.rpartition(".")[0]), ListConfig)


def _delete(cfg: DictConfig, o: Override, f: Any, rest: str) -> None:
    key = o.key_or_group
    if not rest or not check.is_table(f):
        raise KeyedError(
            key, "cannot be removed; set it to another value (`~` removes entries of tables such as task.rewards)"
        )
    try:
        ConfigLoaderImpl._apply_overrides_to_config([o], cfg)
    except Exception:
        parent, _, name = key.rpartition(".")
        try:
            table = OmegaConf.select(cfg, parent)
        except Exception:
            table = None
        known = [str(k) for k in table] if isinstance(table, DictConfig) else []
        if name in known and o.value() is None:  # a null entry: Hydra takes it for absent
            OmegaConf.set_struct(table, False)
            del table[name]
            return
        raise KeyedError(key, f"cannot be removed: {parent} has {listing(known)}{did_you_mean(name, known)}") from None


def explain(e: BaseException, key: str, value: Any, algo: str) -> KeyedError:
    """An error of Hydra or OmegaConf at a key, in our words."""
    cause: Any = e
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__
    full = getattr(cause, "full_key", None) or getattr(e, "full_key", None) or key
    f, rest = check.find_field(str(full), algo)
    if f is None:
        return check.unknown_key(str(full), algo)
    if not rest or not check.is_table(f):
        found = getattr(cause, "value", None) if str(full) != key else value
        return check.bad_value(str(full), value if found is None else found, f)
    return KeyedError(
        one_line(full),
        f"cannot be set to {check.shown(value)} ({one_line(str(cause).splitlines()[0] if str(cause) else '', 100)})",
    )
