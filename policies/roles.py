"""Who may do what: globs of a role, narrowed by those of a key."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from itertools import compress

from policies.quotas import Limit, Measure, limits_of
from policies.settings import LimitSettings, RoleSettings

ADMIN = RoleSettings(name="admin", collections=["*"], paths=["*"])
"""Built in, and the only one that reaches /admin unless another role names it."""

DEFAULT = RoleSettings(name="default")
"""What a key without a role gets where the configuration has no role of this name: every model, no documents, no limits."""

ROLE = "role:"
"""Before a role's name where it holds limits; no key's id begins so."""

KINDS = ("models", "collections", "prompts", "backends", "paths")


class Allowed:
    """A set of names given by globs. Case matters; `*` matches everything, slashes too."""

    def __init__(self, globs: Iterable[str]) -> None:
        globs = tuple(globs)
        self._everything = "*" in globs
        self._pattern = re.compile("|".join(map(translate, globs)) if globs else r"(?!)")

    def __contains__(self, name: str) -> bool:
        return self._everything or self._pattern.match(name) is not None


class Role:
    """A role's settings with its globs compiled."""

    def __init__(self, settings: RoleSettings) -> None:
        self.name = settings.name
        self.settings = settings
        self.allowed = {kind: Allowed(getattr(settings, kind)) for kind in KINDS}
        self.administers = any(map(_reaches_admin, settings.paths))
        """Whether any of /admin is open to its keys."""


def _reaches_admin(glob: str) -> bool:
    """Whether a glob could match something below /admin; when in doubt, yes."""
    plain = "/" + re.split(r"[*?\[]", glob, maxsplit=1)[0].lstrip("/")
    return plain.startswith("/admin") or (plain != glob and "/admin/".startswith(plain))


def all_roles(configured: Iterable[RoleSettings], previous: Mapping[str, Role] = {}) -> dict[str, Role]:
    """The configured roles with the built-in ones; of those in use before, the same where nothing has changed."""
    roles = {}
    for settings in (DEFAULT, *configured, ADMIN):
        known = previous.get(settings.name)
        roles[settings.name] = known if known is not None and known.settings == settings else Role(settings)
    return roles


@dataclass(frozen=True)
class Caller:
    """Who is asking. Built once per key and configuration, then only read."""

    key_id: str
    key_name: str
    role: Role
    narrowed: tuple[tuple[str, Allowed], ...] = ()
    own_limits: tuple[LimitSettings, ...] = ()
    expires_at: int | None = None
    """Unix seconds."""
    log_content: bool = False
    """What is asked and answered with this key is kept."""

    def may(self, kind: str, name: str) -> bool:
        """`kind`: models, collections, prompts, backends or paths."""
        if name not in self.role.allowed[kind]:
            return False
        return not self.narrowed or all(name in allowed for own, allowed in self.narrowed if own == kind)

    def reads(self, *, name: str, id_: str, owner: str) -> bool:
        """Whether a collection is there for this caller: one of the configuration (without an owner) by the globs of role and key;
        one made over the API for the role of the key that made it, unless the key is narrowed to others; all of these for administrators.
        """
        if not owner:
            return self.may("collections", name)
        mine = self.role.name in (owner, ADMIN.name)
        return mine and all(name in allowed or id_ in allowed for own, allowed in self.narrowed if own == "collections")

    @property
    def narrowed_to_collections(self) -> bool:
        """Not all that its role may read is there for this key."""
        return any(kind == "collections" for kind, _ in self.narrowed)

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        """Of the role and of the key; all of them hold."""
        settings = self.role.settings
        holder = f"{ROLE}{self.role.name}" if settings.shared else self.key_id
        return (*limits_of(settings.limits, holder=holder), *limits_of(self.own_limits, holder=self.key_id))

    def limits_for(self, model: str) -> tuple[Limit, ...]:
        """Those that a request for this model counts in. The same object for the same limits."""
        if not self._of_models:
            return self.limits
        applies = tuple(limit.applies_to(model) for limit in self.limits)
        known = self._selections.get(applies)
        if known is None:
            known = self._selections[applies] = tuple(compress(self.limits, applies))
        return known

    def limits_any(self, *measures: Measure) -> bool:
        return not self._measures.isdisjoint(measures)

    @cached_property
    def _measures(self) -> frozenset[Measure]:
        return frozenset(limit.measure for limit in self.limits)

    @cached_property
    def _of_models(self) -> bool:
        return any(limit.scope.model is not None for limit in self.limits)

    @cached_property
    def _selections(self) -> dict[tuple[bool, ...], tuple[Limit, ...]]:
        return {}
