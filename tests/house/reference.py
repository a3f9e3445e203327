"""docs/reference/configuration.md from the settings themselves: `.venv/bin/python -m tests.house.reference` writes it."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from gateway.settings_schema import GatewaySettings
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reference" / "configuration.md"

HEAD = """# Configuration

Generated from the settings models; [config/reference.yaml](../../config/reference.yaml) shows every option in place.
`${NAME}` in any text is replaced by the environment variable `NAME` (`${home}` by `home`). `off` and `false` mean the same.
Unknown keys are refused with their file and line; `chasqui check` shows everything that is wrong at once.
"""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def all_models(root: type[BaseModel]) -> list[type[BaseModel]]:
    found: dict[type[BaseModel], None] = {root: None}
    queue = [root]
    while queue:
        for field in queue.pop(0).model_fields.values():
            for model in models_in(field.annotation):
                if model not in found:
                    found[model] = None
                    queue.append(model)
    return list(found)


def option_names(root: type[BaseModel]) -> set[str]:
    return {name for model in all_models(root) for name in model.model_fields}


def docs_of(model: type[BaseModel]) -> dict[str, str]:
    """The string below each field, own and inherited."""
    docs: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if base in (BaseModel, object) or not issubclass(base, BaseModel):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, below in zip(body, body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                docs[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[union-attr]
    return docs


def kind(annotation: Any) -> str:
    if annotation is type(None):
        return "nothing"
    if models := list(models_in(annotation)):
        inner = " or ".join(f"[{model.__name__}](#{model.__name__.lower()})" for model in dict.fromkeys(models))
        return f"list of {inner}" if get_origin(annotation) is list else inner
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(arguments[0])
    if origin is list:
        return f"list of {kind(arguments[0])}"
    if origin is dict:
        return "mapping"
    if type(annotation).__name__ in ("UnionType", "Union") or (origin is not None and "Union" in str(origin)):
        return " or ".join(kind(argument) for argument in arguments if argument is not type(None))
    if arguments:  # Literal
        return " or ".join(f"`{'off' if value is False else value}`" for value in arguments)
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        annotation.__name__, str(annotation)
    )


def default_of(field: Any) -> str:
    if field.is_required():
        return "**required**"
    value = field.default if field.default is not PydanticUndefined else field.default_factory()
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None:
        return "none"
    return "`off`" if value is False else f"`{value}`"


def render() -> str:
    parts = [HEAD]
    for model in all_models(GatewaySettings):
        parts.append(f"\n## {model.__name__}\n")
        if model.__doc__:
            parts.append(" ".join(model.__doc__.split()) + "\n")
        docs = docs_of(model)
        parts.append("| key | kind | default | |\n|---|---|---|---|")
        for name, field in model.model_fields.items():
            parts.append(f"| `{name}` | {kind(field.annotation)} | {default_of(field)} | {docs.get(name, '')} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(render())
