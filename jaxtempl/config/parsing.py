"""Fill a command's frozen dataclass from flags and YAML files; an error for an unknown key lists the nearest names.

A value comes from the first of: a flag, the user's `--config` file, the recipe, the size's file, the command's
file in `configs/`, the dataclass. The run keeps the resolved dataclass, and `--verbose` prints it.
"""

import argparse
import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml

from jaxtempl import files
from jaxtempl.config import paths
from jaxtempl.errors import UsageError, UserError

ConfigT = TypeVar("ConfigT")


def parse(
    kind: type[ConfigT], argv: Sequence[str], layers: Callable[[Mapping[str, Any]], Iterable[Any]] = lambda _: ()
) -> ConfigT:
    """Return the dataclass: flags over the user's `--config` file over `layers` over the dataclass's defaults.

    Args:
        kind: Dataclass of the command.
        argv: Arguments of the command.
        layers: Function from the values of flags and file to the mappings under them, lowest first.

    Raises:
        UsageError: A flag or key is unknown, or a value is not of its field's type.
    """
    flags = _flags(kind, argv)
    path = flags.pop("config", None)
    given = {**(load(Path(paths.expand_home(path))) if path else {}), **flags}
    merged = {key: value for layer in layers(given) for key, value in layer.items()}
    return build(kind, {**merged, **given})


def build(kind: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Return the dataclass of named values, each converted to its field's type.

    Raises:
        UsageError: A name is not a field (the nearest ones are listed), or a value is of another type.
    """
    fields = {_name(field): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UsageError(_unknown(key, fields))
    types_ = typing.get_type_hints(kind)
    given = {key: value for key, value in values.items() if value is not None}  # YAML's null
    coerced = {fields[k].name: _coerce(k, types_[fields[k].name], v) for k, v in given.items()}
    for key in given:
        _check_bound(key, coerced[fields[key].name], fields[key].metadata.get("minimum"))
    return kind(**coerced)


def current_keys(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values under current keys; an earlier release may have named some of them differently."""
    renamed = {field.metadata.get("was"): _name(field) for field in dataclasses.fields(kind)}
    return {renamed.get(key, key): value for key, value in values.items()}


def _check_bound(key: str, value: Any, minimum: int | None) -> None:
    if minimum is not None and not value >= minimum:  # a NaN compares as false
        raise UsageError(f"--{key}={value} is too small; {minimum} or more is allowed")


def dump(config: Any) -> str:
    """Return the resolved config as YAML that `--config` accepts."""
    recorded = [field for field in dataclasses.fields(config) if field.metadata.get("recorded", True)]
    values = {_name(field): getattr(config, field.name) for field in recorded}
    plain = {k: list(v) if isinstance(v, tuple) else str(v) if isinstance(v, Path) else v for k, v in values.items()}
    return yaml.safe_dump(plain, sort_keys=False)


def load(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        UserError: The file is missing, is not UTF-8 or YAML, or is not a mapping.
    """
    try:
        value = yaml.load(files.read_text(path), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # its syntax, a date that does not exist, its depth
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}; a mapping of keys to values is needed")
    return {str(key): item for key, item in value.items()}  # YAML has keys of any type


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads `3e-4` as a number; in YAML 1.1 it is a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")

    def print_help(self, file: object = None) -> None:
        """Print the help, and raise the OSError that argparse ignores if it cannot be written."""
        print(self.format_help(), end="", flush=True)


def _flags(kind: type, argv: Sequence[str]) -> dict[str, Any]:
    fields = dataclasses.fields(kind)
    command = re.sub("(?<=[a-z])(?=[A-Z])", " ", kind.__name__.removesuffix("Config")).lower()
    parser = _Parser(
        prog=f"bin/{command}", description=kind.__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="YAML file of the keys below; flags override it.")
    for field in fields:
        _add(parser, field)
    parsed, unknown = parser.parse_known_args([_switched(flag, fields) for flag in argv])
    if unknown:
        raise UsageError(_unknown(unknown[0], {_name(f): f for f in fields}))
    return vars(parsed)


def _switched(flag: str, fields: Iterable[Any]) -> str:
    """Return a bare switch as `--switch=true`, so that it does not consume the next argument as its value."""
    switches = {f"--{_name(field)}" for field in fields if field.type in (bool, "bool")}
    return f"{flag}=true" if flag in switches else flag


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    if field.metadata.get("positional"):
        parser.add_argument(field.name, help=field.metadata["help"])
        return
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    shown = "" if default in ("", 0, False) else f" [{default}]"
    text = (field.metadata["help"] + shown).replace("%", "%%")
    allowed = ("true", "false") if field.type in (bool, "bool") else typing.get_args(field.type)
    metavar = "|".join(allowed) if allowed and isinstance(allowed[0], str) else "X"
    parser.add_argument(f"--{_name(field)}", help=text, metavar=metavar)


def _name(field: dataclasses.Field[Any]) -> str:
    return field.metadata.get("flag", field.name)


def _unknown(key: str, fields: Mapping[str, Any]) -> str:
    bare = key.lstrip("-").split("=")[0]
    renamed = next((name for name, field in fields.items() if field.metadata.get("was") == bare), None)
    if renamed:
        return f"{key!r} is now --{renamed}"
    near = difflib.get_close_matches(bare, fields, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join('--' + n for n in near)}" if near else "see --help for the allowed ones"
    return f"{key!r} is unknown; {hint}"


def _coerce(key: str, kind: Any, value: Any) -> Any:
    """Convert a flag's text or a YAML value to a field's type; raise UsageError if that fails."""
    origin = typing.get_origin(kind)
    if origin is tuple:
        if isinstance(value, str):
            value = paths.split_list(value) if str in typing.get_args(kind) else value.split(",")
        parts = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_coerce(key, typing.get_args(kind)[0], part) for part in parts if part != "")
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise UsageError(f"--{key}={value!r} is unknown; allowed: {', '.join(typing.get_args(kind))}")
        return value
    return _scalar(key, kind, value)


def _scalar(key: str, kind: Any, value: Any) -> Any:
    text = str(value)
    if any("\ud800" <= character <= "\udfff" for character in text):  # bytes of the command line that are not UTF-8
        raise UsageError(f"--{key}={text!a} is not UTF-8 text; rename the file, or correct the flag")
    try:
        return _TYPES[kind][0](text)
    except (ValueError, KeyError):
        raise UsageError(f"--{key}={value!r} is not {_TYPES[kind][1]}") from None


_TYPES: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (paths.expand_home, "text"),
    Path: (lambda text: Path(paths.expand_home(text)), "a path"),
}
