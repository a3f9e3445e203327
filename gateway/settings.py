"""The one place that reads the configuration file and the environment. All problems at once, each with file and line."""

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError

from backends.sources import matching_files
from gateway.settings_checks import cross_check
from gateway.settings_schema import GatewaySettings, StoreSettings
from gateway.settings_secrets import MIN_SECRET_CHARS, missing_secrets, read_secrets
from gateway.settings_yaml import Lines, load_yaml

DEFAULT_CONFIG = "config/chasqui.yaml"


class Loaded(NamedTuple):
    settings: GatewaySettings
    path: Path
    home: Path
    admin_key: str | None
    tiktoken_dir: Path | None
    secrets: Mapping[str, str]
    """What the configuration names: environment variables by name, files by `file:` and their path."""


class ConfigInvalid(Exception):
    """Everything that is wrong, a line each: `file:line: where: what`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


NOT_BUILT_YET = frozenset("metrics stages".split())
"""Names that the design has and this version has not: refused by name, never parsed and ignored."""


def load(
    path: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    *,
    host: str | None = None,
    port: int | None = None,
) -> Loaded:
    """A flag beats the environment, the environment beats the file.

    Raises:
        ConfigInvalid
    """
    path = path or Path(environment.get("CHASQUI_CONFIG") or DEFAULT_CONFIG)
    tree, lines = _read(path)
    problems: list[str] = []
    secrets: Mapping[str, str] = {}
    home = environment.get("CHASQUI_HOME") or tree.get("home") or GatewaySettings.model_fields["home"].default
    tree["home"] = home
    tree.setdefault("store", {"url": StoreSettings.model_fields["url"].default})
    tree = _interpolate(tree, {**environment, "home": str(home)}, (), lines, problems)
    if isinstance(tree.get("server", {}), dict):
        tree["server"] = tree.get("server", {}) | _overrides(environment, host, port, problems)
    settings = _validate(tree, lines, problems)
    if settings is not None:
        problems += [lines.say(where, what) for where, what in cross_check(settings)]
        secrets = read_secrets(settings, environment)
        problems += [lines.say(where, what) for where, what in missing_secrets(settings, secrets)]
    admin_key = environment.get("CHASQUI_ADMIN_KEY") or None
    if admin_key is not None and len(admin_key) < MIN_SECRET_CHARS:
        problems.append(f"CHASQUI_ADMIN_KEY is shorter than {MIN_SECRET_CHARS} characters; choose a longer one")
    if problems or settings is None:
        raise ConfigInvalid(problems)
    folder = environment.get("TIKTOKEN_CACHE_DIR")
    return Loaded(
        settings=settings,
        path=path,
        home=Path(str(settings.home)).absolute(),
        admin_key=admin_key,
        tiktoken_dir=Path(folder) if folder else None,
        secrets=secrets,
    )


def watched_files(loaded: Loaded) -> list[str]:
    """What, when it is saved, makes another configuration: the file, prompts, and secrets that are files."""
    prompts = map(str, matching_files(loaded.settings.prompts.paths, root=Path.cwd()))
    secrets = [name.removeprefix("file:") for name in loaded.secrets if name.startswith("file:")]
    return [str(loaded.path), *prompts, *sorted(secrets)]


def _overrides(
    environment: Mapping[str, str], host: str | None, port: int | None, problems: list[str]
) -> dict[str, Any]:
    """What stands above the file's `server`."""
    found: dict[str, Any] = {}
    if named_host := host or environment.get("CHASQUI_HOST"):
        found["host"] = named_host
    if port is not None:
        found["port"] = port
    elif named_port := environment.get("CHASQUI_PORT"):
        if named_port.isdigit():
            found["port"] = named_port
        else:
            problems.append(f"CHASQUI_PORT is '{named_port}', which is not a port")
    return found


def _read(path: Path) -> tuple[dict[str, Any], Lines]:
    try:
        text = path.read_text("utf-8")
    except OSError as exc:
        raise ConfigInvalid([f"{path}: cannot be read: {exc.strerror}; give another with --config"]) from None
    except UnicodeDecodeError:
        raise ConfigInvalid([f"{path}: is not UTF-8 text"]) from None
    try:
        tree, lines = load_yaml(text, str(path))
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise ConfigInvalid([f"{path}{where}: not valid YAML: {getattr(exc, 'problem', None) or exc}"]) from None
    except RecursionError:
        raise ConfigInvalid([f"{path}: is nested too deeply, or contains itself"]) from None
    if not isinstance(tree, dict):
        raise ConfigInvalid([f"{path}: must be a mapping with server, backends, models …"])
    return tree, lines


_UNION_TAG = re.compile(r"llama_cpp|quote|openai|RouteEntry|constrained-.*|literal\[.*|function-.*|int|str|bool|float")
"""Pydantic puts the tried member of a union into an error's path; the file knows nothing of it."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _interpolate(
    value: Any, variables: Mapping[str, str], where: tuple[Any, ...], lines: Lines, problems: list[str]
) -> Any:
    """Replace `${NAME}` in every string; one that is not set is a problem."""
    if isinstance(value, dict):
        return {key: _interpolate(item, variables, (*where, key), lines, problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, variables, (*where, index), lines, problems) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    missing = [name for name in _VARIABLE.findall(value) if name not in variables]
    problems += [lines.say(where, f"the environment variable {name} is not set") for name in missing]
    return _VARIABLE.sub(lambda match: variables.get(match[1], ""), value)


def _validate(tree: dict[str, Any], lines: Lines, problems: list[str]) -> GatewaySettings | None:
    try:
        return GatewaySettings.model_validate(tree)
    except ValidationError as exc:
        found: dict[tuple[Any, ...], list[str]] = {}
        for error in exc.errors():
            where = tuple(part for part in error["loc"] if not _UNION_TAG.fullmatch(str(part)))
            found.setdefault(where, []).append(_words(error, where))
        problems += [lines.say(where, ", or: ".join(dict.fromkeys(words))) for where, words in found.items()]
        return None


def _words(error: Any, where: tuple[Any, ...]) -> str:
    if error["type"] != "extra_forbidden":
        return str(error["msg"]).removeprefix("Value error, ")
    name = str(where[-1])
    if name in NOT_BUILT_YET:
        return f"'{name}' is planned but not built in this version; remove it"
    near = get_close_matches(name, _names_beside(where), n=1)
    return f"unknown key '{name}'" + (f"; did you mean '{near[0]}'?" if near else "")


def _names_beside(where: tuple[Any, ...]) -> list[str]:
    """The keys that the mapping at this place knows."""
    here: set[type[BaseModel]] = {GatewaySettings}
    for part in where[:-1]:
        if isinstance(part, str):
            here = {
                inner
                for model in here
                if part in model.model_fields
                for inner in _models(model.model_fields[part].annotation)
            }
    return sorted({name for model in here for name in model.model_fields})


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings models that a type is made of, without theirs."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
