"""Named templates: read from YAML, checked, rendered in jinja2's sandbox. The last user text is `{{ text }}`."""

import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
import jinja2.meta
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, ValidationError, model_validator

from backends.settings import Name, Settings
from backends.sources import matching_files
from policies.errors import PromptInvalid

_environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


TEMPLATE_FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError,
)  # fmt: skip
"""What a template can run into with the values of a client."""


class Variable(Settings):
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    default: str | int | float | bool | None = None
    """None: the client must give it."""


class TemplateMessage(Settings):
    role: Literal["system", "developer", "user", "assistant"]
    content: str


class Prompt(Settings):
    """One version of one prompt. Only prod versions are served so far."""

    name: Name
    version: Annotated[int, Field(ge=1)] = 1
    stage: Literal["prod"] = "prod"
    description: str = ""
    variables: list[Variable] = []
    messages: Annotated[list[TemplateMessage], Field(min_length=1)]
    params: dict[str, Any] = {}
    """Fields of the body (temperature …) that hold where the client does not say otherwise."""

    @model_validator(mode="after")
    def _templates_are_sound(self) -> "Prompt":
        known = {variable.name for variable in self.variables} | {"text"}
        for message in self.messages:
            try:
                names = jinja2.meta.find_undeclared_variables(_environment.parse(message.content))
                _environment.from_string(message.content)  # finds tests that do not exist
            except jinja2.TemplateSyntaxError as exc:  # also for a filter or test that does not exist
                raise ValueError(f"a template has a mistake in line {exc.lineno}: {exc.message}") from None
            unknown = names - known
            if unknown:
                raise ValueError(f"a template uses {', '.join(sorted(unknown))}, which `variables` does not name")
        if self.messages[-1].role != "user":
            raise ValueError("the last message is the user's; it usually holds {{ text }}")
        return self

    @property
    def fixed_messages(self) -> int:
        """Leading messages that are the same for everybody, whatever a client fills in."""
        leading = takewhile(lambda message: not _MARKUP.search(message.content), self.messages[:-1])
        return sum(1 for _ in leading)

    def render(self, text: str, variables: Mapping[str, Any]) -> list[dict[str, str]]:
        """The messages with everything filled in.

        Raises:
            PromptInvalid: a variable that is missing, unknown or breaks the template.
        """
        values = {variable.name: variable.default for variable in self.variables if variable.default is not None}
        unknown = set(variables) - {variable.name for variable in self.variables}
        if unknown:
            raise PromptInvalid(f"prompt '{self.name}' has no variable {', '.join(sorted(unknown))}")
        values |= dict(variables)
        missing = [variable.name for variable in self.variables if variable.name not in values]
        if missing:
            raise PromptInvalid(f"prompt '{self.name}' needs the variable {', '.join(missing)}")
        try:
            return [
                {
                    "role": message.role,
                    "content": _environment.from_string(message.content).render(values | {"text": text}),
                }
                for message in self.messages
            ]
        except TEMPLATE_FAILURES as exc:
            raise PromptInvalid(f"prompt '{self.name}' cannot be rendered: {exc}") from None


_MARKUP = re.compile(r"\{[{%]")


def load_prompts(paths: Iterable[str], *, root: Path) -> dict[str, Prompt]:
    """Prompts by name, from all files that the globs match; of two versions the higher.

    Raises:
        PromptInvalid: every bad file, a line each.
    """
    prompts: dict[str, Prompt] = {}
    problems: list[str] = []
    for path in matching_files(paths, root=root):
        try:
            prompt = Prompt.model_validate(yaml.safe_load(path.read_text("utf-8")))
        except ValidationError as exc:
            problems += [
                f"{path}: {'.'.join(map(str, error['loc'])) or 'prompt'}: {error['msg']}" for error in exc.errors()
            ]
            continue
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as exc:
            problems.append(f"{path}: {exc}")
            continue
        known = prompts.get(prompt.name)
        if known is not None and known.version == prompt.version:
            problems.append(f"{path}: prompt '{prompt.name}' version {prompt.version} exists twice")
        elif known is None or known.version < prompt.version:
            prompts[prompt.name] = prompt
    if problems:
        raise PromptInvalid("\n".join(problems))
    return prompts


def apply(messages: list[dict[str, Any]], rendered: list[dict[str, str]]) -> list[dict[str, Any]]:
    """A conversation through a template: its leading messages, the earlier turns, then its last message in place of the client's."""
    earlier = [message for message in messages if message.get("role") not in ("system", "developer")]
    last_user = max(
        (index for index, message in enumerate(earlier) if message.get("role") == "user"), default=len(earlier)
    )
    return [*rendered[:-1], *earlier[:last_user], rendered[-1], *earlier[last_user + 1 :]]
