"""Keys: `sk-<public id>-<secret>`, shown once, kept as a SHA-256. Looking one up is one dictionary access, no database."""

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import JSON, BigInteger, Column, Delete, Table, Update, delete, insert, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Field, SQLModel

from policies.audit import Actor, record
from policies.errors import KeyNotFound, RoleUnknown
from policies.generations import bump
from policies.roles import KINDS, Allowed, Caller, Role
from policies.settings import LimitSettings

KIND = "keys"
ID_BYTES = 6
SECRET_BYTES = 32


class KeyRow(SQLModel, table=True):
    """A key as it is stored. `digest`: SHA-256 of the whole key, hex."""

    __tablename__ = "keys"

    id: str = Field(primary_key=True)
    name: str = Field(index=True)
    role: str
    digest: str = Field(unique=True)
    created_at: int = Field(sa_type=BigInteger)
    expires_at: int | None = Field(default=None, sa_type=BigInteger)
    disabled: bool = False
    limits: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    narrowed: dict[str, list[str]] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """models, collections, prompts, paths: globs that narrow the role's."""
    key_metadata: dict[str, Any] = Field(default_factory=dict, sa_column=Column("metadata", JSON, nullable=False))
    log_content: bool = False
    """What is asked and answered is kept in the ledger."""


keys_table: Table = KeyRow.__table__  # type: ignore[attr-defined]


class NewKey(NamedTuple):
    name: str
    role: str
    expires_at: int | None = None
    limits: tuple[LimitSettings, ...] = ()
    narrowed: Mapping[str, list[str]] = {}
    metadata: Mapping[str, Any] = {}
    disabled: bool = False
    log_content: bool = False


class GivenKey(NamedTuple):
    """A key that the environment gives; it is never stored."""

    name: str
    role: str
    secret: str
    log_content: bool = False


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


class Keys:
    """
    Args:
        clock: Unix seconds.
        given: keys from the environment.
        previous: those in use before, of another configuration.
    """

    def __init__(
        self,
        database: AsyncEngine,
        roles: Mapping[str, Role],
        *,
        clock: Callable[[], float],
        given: Iterable[GivenKey] = (),
        previous: "Keys | None" = None,
    ) -> None:
        self._database = database
        self._roles = roles
        self._clock = clock
        before: Mapping[str, Caller] = previous._given if previous is not None else {}
        self._given: dict[str, Caller] = {digest_of(key.secret): self._given_caller(key, before) for key in given}
        self._callers: dict[str, Caller] = dict(self._given)
        self._rows: dict[str, tuple[Mapping[str, Any], Caller]] = previous._rows if previous is not None else {}
        """By digest: what is stored, and what it was made into. A key that has not changed stays the same caller, so that whoever
        knows callers by their identity need not learn them anew."""
        self._reloading = asyncio.Lock()

    def _given_caller(self, key: GivenKey, before: Mapping[str, Caller]) -> Caller:
        caller = Caller(f"env:{key.name}", key.name, self._role(key.role), log_content=key.log_content)
        known = before.get(digest_of(key.secret))
        return known if known == caller else caller

    def find(self, secret: str) -> Caller | None:
        """Whom a key belongs to; None: it is unknown, disabled or expired."""
        caller = self._callers.get(digest_of(secret))
        if caller is None or (caller.expires_at is not None and caller.expires_at <= self._clock()):
            return None
        return caller

    async def reload(self) -> None:
        """Read all usable keys anew. The dictionary is replaced whole, and one reading at a time: nothing old comes back."""
        async with self._reloading:
            self._callers = await self._read()

    async def _read(self) -> dict[str, Caller]:
        async with self._database.connect() as connection:
            rows = (await connection.execute(select(keys_table).where(~keys_table.c.disabled))).mappings().all()
        known, self._rows = self._rows, {}
        for row in map(dict, rows):
            if row["role"] in self._roles:  # a role that left the configuration takes its keys with it
                before, caller = known.get(row["digest"], (None, None))
                if caller is None or before != row or caller.role is not self._roles[row["role"]]:
                    caller = self._caller(row)
                self._rows[row["digest"]] = (row, caller)
        return {**{digest: caller for digest, (_, caller) in self._rows.items()}, **self._given}

    async def create(self, new: NewKey, *, by: Actor) -> tuple[KeyRow, str]:
        """The stored row, and the key itself, this once.

        Raises:
            RoleUnknown
        """
        self._role(new.role)
        public = secrets.token_hex(ID_BYTES)
        secret = _new_secret(public)
        row = KeyRow(
            id=f"key_{public}",
            name=new.name,
            role=new.role,
            digest=digest_of(secret),
            created_at=int(self._clock()),
            expires_at=new.expires_at,
            limits=[limit.model_dump(exclude_none=True) for limit in new.limits],
            narrowed=dict(new.narrowed),
            key_metadata=dict(new.metadata),
            disabled=new.disabled,
            log_content=new.log_content,
        )
        async with self._database.begin() as connection:
            await connection.execute(insert(keys_table).values(_columns(row)))
            await bump(connection, KIND)
            await record(connection, by, "key.create", row.id, _public(_columns(row)))
        await self.reload()
        return row, secret

    async def list(self, *, limit: int, after: str | None = None) -> list[KeyRow]:
        """Newest first; `after` is the id of the last one seen."""
        query = select(keys_table).order_by(keys_table.c.created_at.desc(), keys_table.c.id.desc()).limit(limit)
        if after is not None:
            last = await self.get(after)
            place = tuple_(keys_table.c.created_at, keys_table.c.id)
            query = query.where(place < tuple_(literal(last.created_at, BigInteger), literal(last.id)))
        async with self._database.connect() as connection:
            return [_row(dict(values)) for values in (await connection.execute(query)).mappings()]

    async def get(self, key_id: str) -> KeyRow:
        """
        Raises:
            KeyNotFound
        """
        async with self._database.connect() as connection:
            values = (await connection.execute(select(keys_table).where(_is(key_id)))).mappings().first()
        if values is None:
            raise KeyNotFound(key_id)
        return _row(dict(values))

    async def update(self, key_id: str, *, by: Actor, **changes: Any) -> KeyRow:
        """
        Args:
            changes: columns of `KeyRow` by name.

        Raises:
            KeyNotFound, RoleUnknown
        """
        if "role" in changes:
            self._role(changes["role"])
        if changes:
            await self._change(key_id, update(keys_table).values(changes), by, "key.update", _public(changes))
        return await self.get(key_id)

    async def rotate(self, key_id: str, *, by: Actor) -> tuple[KeyRow, str]:
        """A new secret for the same id; the old one ends with this call.

        Raises:
            KeyNotFound
        """
        secret = _new_secret(key_id.removeprefix("key_"))
        await self._change(key_id, update(keys_table).values(digest=digest_of(secret)), by, "key.rotate")
        return await self.get(key_id), secret

    async def delete(self, key_id: str, *, by: Actor) -> None:
        """
        Raises:
            KeyNotFound
        """
        await self._change(key_id, delete(keys_table), by, "key.delete")

    async def admin_exists(self, admin_role: str) -> bool:
        expires_at = keys_table.c.expires_at
        alive = ~keys_table.c.disabled & (expires_at.is_(None) | (expires_at > int(self._clock())))
        query = select(keys_table.c.id).where(keys_table.c.role == admin_role, alive).limit(1)
        async with self._database.connect() as connection:
            return (await connection.execute(query)).first() is not None

    async def _change(
        self, key_id: str, statement: Update | Delete, by: Actor, action: str, details: Mapping[str, Any] | None = None
    ) -> None:
        async with self._database.begin() as connection:
            result = await connection.execute(statement.where(_is(key_id)))
            if result.rowcount == 0:
                raise KeyNotFound(key_id)
            await bump(connection, KIND)
            await record(connection, by, action, key_id, details)
        await self.reload()

    @property
    def callers(self) -> Iterable[Caller]:
        """Of all usable keys."""
        return self._callers.values()

    def _caller(self, row: Mapping[str, Any]) -> Caller:
        return Caller(
            key_id=row["id"],
            key_name=row["name"],
            role=self._roles[row["role"]],
            narrowed=tuple((kind, Allowed(row["narrowed"][kind])) for kind in KINDS if kind in row["narrowed"]),
            own_limits=tuple(LimitSettings.model_validate(limit) for limit in row["limits"]),
            expires_at=row["expires_at"],
            log_content=row["log_content"],
        )

    def _role(self, name: str) -> Role:
        role = self._roles.get(name)
        if role is None:
            raise RoleUnknown(name, sorted(self._roles))
        return role


def _new_secret(public: str) -> str:
    return f"sk-{public}-{secrets.token_urlsafe(SECRET_BYTES)}"


def _public(columns: Mapping[str, Any]) -> dict[str, Any]:
    """What an audit may say of a key."""
    return {name: value for name, value in columns.items() if name not in ("id", "digest")}


def _is(key_id: str) -> Any:
    """
    Raises:
        KeyNotFound: no key has such an id, and PostgreSQL would not take every character in the question.
    """
    if not key_id.isprintable():
        raise KeyNotFound(key_id)
    return keys_table.c.id == key_id


def _columns(row: KeyRow) -> dict[str, Any]:
    values = row.model_dump()
    values["metadata"] = values.pop("key_metadata")
    return values


def _row(values: Mapping[str, Any]) -> KeyRow:
    fields = dict(values)
    fields["key_metadata"] = fields.pop("metadata")
    return KeyRow(**fields)
