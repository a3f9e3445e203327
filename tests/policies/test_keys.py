import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from policies.audit import CLI
from policies.errors import KeyNotFound, RoleUnknown
from policies.generations import Watcher
from policies.keys import KIND, GivenKey, Keys, NewKey
from policies.quotas import Limit, Measure, Scope
from policies.roles import ADMIN, Caller, Role
from policies.settings import LimitSettings, RoleSettings
from policies.spans import Rolling

pytestmark = pytest.mark.anyio

ROLES = {role.name: Role(role) for role in (ADMIN, RoleSettings(name="default"), RoleSettings(name="team"))}


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(database: AsyncEngine, clock: Clock) -> Keys:
    return Keys(database, ROLES, clock=clock)


def knows(keys: Keys, secret: str) -> bool:
    return keys.find(secret) is not None


def caller_of(keys: Keys, secret: str) -> Caller:
    caller = keys.find(secret)
    assert caller is not None
    return caller


async def test_a_created_key_says_who_is_calling(keys: Keys, clock: Clock) -> None:
    limits = (LimitSettings(per="1m", requests=7), LimitSettings(concurrent=2))
    row, secret = await keys.create(
        NewKey("ci", "team", limits=limits, narrowed={"models": ["gpt-*"]}, metadata={"cost": "42"}), by=CLI
    )
    caller = caller_of(keys, secret)
    assert (caller.key_id, caller.key_name, caller.role.name) == (row.id, "ci", "team")
    assert caller.limits == (
        Limit(Scope(row.id), Measure.REQUESTS, 7, Rolling(60.0)),
        Limit(Scope(row.id), Measure.CONCURRENT, 2, None),
    )
    assert caller.may("models", "gpt-4o")
    assert not caller.may("models", "llama")
    stored = await keys.get(row.id)
    assert stored == row
    assert (stored.created_at, stored.key_metadata) == (clock.now_s, {"cost": "42"})


async def test_a_key_carries_its_public_id_and_much_chance(keys: Keys) -> None:
    made = [await keys.create(NewKey("ci", "team"), by=CLI) for _ in range(3)]
    for row, secret in made:
        start, public, chance = secret.split("-", 2)
        assert (start, f"key_{public}") == ("sk", row.id)
        assert len(chance) >= 43
    assert len({secret.split("-", 2)[2] for _, secret in made}) == 3


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_only_a_digest_of_the_key_is_on_disk(keys: Keys, database: AsyncEngine, database_path: Path) -> None:
    row, secret = await keys.create(NewKey("ci", "team"), by=CLI)
    _, rotated = await keys.rotate(row.id, by=CLI)
    await database.dispose()
    data = b"".join(path.read_bytes() for path in database_path.parent.glob("chasqui.db*"))
    assert hashlib.sha256(rotated.encode()).hexdigest().encode() in data
    for shown in (secret, rotated):
        assert shown.encode() not in data
        assert shown.split("-", 2)[2].encode() not in data


@pytest.mark.parametrize(
    "bend",
    [
        lambda secret: "",
        lambda secret: secret[:-1],
        lambda secret: secret + " ",
        lambda secret: secret.upper(),
        lambda secret: hashlib.sha256(secret.encode()).hexdigest(),
        lambda secret: "sk-ñandú",
        lambda secret: secret + "\udcff",
    ],
)
async def test_what_is_not_the_key_is_unknown(keys: Keys, bend: Callable[[str], str]) -> None:
    _, secret = await keys.create(NewKey("ci", "team"), by=CLI)
    assert knows(keys, secret)
    assert not knows(keys, bend(secret))


async def test_a_key_ends_at_the_second_it_expires(keys: Keys, clock: Clock) -> None:
    row, secret = await keys.create(NewKey("ci", "team", expires_at=int(clock.now_s) + 10), by=CLI)
    clock.now_s += 9.9
    assert knows(keys, secret)
    clock.now_s += 0.1
    assert not knows(keys, secret)
    await keys.update(row.id, expires_at=None, by=CLI)
    assert knows(keys, secret)


async def test_a_disabled_key_is_refused_at_once_and_comes_back(keys: Keys) -> None:
    row, secret = await keys.create(NewKey("ci", "team"), by=CLI)
    assert (await keys.update(row.id, disabled=True, by=CLI)).disabled
    assert not knows(keys, secret)
    await keys.update(row.id, disabled=False, by=CLI)
    assert knows(keys, secret)


async def test_rotating_ends_the_old_secret_and_keeps_everything_else(keys: Keys) -> None:
    row, old = await keys.create(NewKey("ci", "team", metadata={"a": "b"}), by=CLI)
    rotated, new = await keys.rotate(row.id, by=CLI)
    assert not knows(keys, old)
    assert caller_of(keys, new).key_id == row.id
    assert rotated.model_dump(exclude={"digest"}) == row.model_dump(exclude={"digest"})
    assert rotated.digest != row.digest


async def test_a_rotated_key_that_is_disabled_stays_disabled(keys: Keys) -> None:
    row, _ = await keys.create(NewKey("ci", "team"), by=CLI)
    await keys.update(row.id, disabled=True, by=CLI)
    assert not knows(keys, (await keys.rotate(row.id, by=CLI))[1])


async def test_a_deleted_key_is_gone(keys: Keys) -> None:
    row, secret = await keys.create(NewKey("ci", "team"), by=CLI)
    await keys.delete(row.id, by=CLI)
    assert not knows(keys, secret)
    assert await keys.list(limit=10) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda keys: keys.get("key_nobody"),
        lambda keys: keys.update("key_nobody", disabled=True, by=CLI),
        lambda keys: keys.update("key_nobody", by=CLI),
        lambda keys: keys.rotate("key_nobody", by=CLI),
        lambda keys: keys.delete("key_nobody", by=CLI),
        lambda keys: keys.list(limit=5, after="key_nobody"),
    ],
    ids=["get", "update", "update nothing", "rotate", "delete", "list after"],
)
async def test_a_key_that_does_not_exist_is_said_to_be_missing(keys: Keys, call: Callable[[Keys], object]) -> None:
    with pytest.raises(KeyNotFound, match="key_nobody"):
        await call(keys)  # type: ignore[misc]


@pytest.mark.parametrize("key_id", ["key_\0", "\0", "key_\udcff", ""])
async def test_what_cannot_be_an_id_is_missing_like_any_other(keys: Keys, key_id: str) -> None:
    for call in (
        keys.get(key_id),
        keys.update(key_id, by=CLI, disabled=True),
        keys.delete(key_id, by=CLI),
        keys.list(limit=5, after=key_id),
    ):
        with pytest.raises(KeyNotFound):
            await call


async def test_the_last_second_that_can_be_said_is_kept(keys: Keys) -> None:
    row, _ = await keys.create(NewKey("ci", "team", expires_at=253_402_300_799, metadata={"a": "\0", "b": "ñ"}), by=CLI)
    assert await keys.get(row.id) == row
    assert (await keys.list(limit=1, after=None))[0] == row


async def test_a_role_that_does_not_exist_is_refused_and_nothing_is_written(keys: Keys) -> None:
    with pytest.raises(RoleUnknown, match="'boss'.*admin, default, team"):
        await keys.create(NewKey("ci", "boss"), by=CLI)
    assert await keys.list(limit=10) == []
    row, secret = await keys.create(NewKey("ci", "team"), by=CLI)
    with pytest.raises(RoleUnknown):
        await keys.update(row.id, role="boss", disabled=True, by=CLI)
    assert knows(keys, secret)


async def test_updates_are_in_force_with_the_call(keys: Keys) -> None:
    row, secret = await keys.create(NewKey("ci", "team"), by=CLI)
    limits = [{"per": "1h", "tokens": 9}]
    changed = await keys.update(
        row.id, role="default", name="cd", limits=limits, narrowed={"paths": ["/v1/models"]}, by=CLI
    )
    caller = caller_of(keys, secret)
    assert (changed.name, caller.key_name, caller.role.name) == ("cd", "cd", "default")
    assert caller.limits == (Limit(Scope(row.id), Measure.TOKENS, 9, Rolling(3600.0)),)
    assert caller.may("paths", "/v1/models")
    assert not caller.may("paths", "/v1/embeddings")


async def test_keys_are_listed_newest_first_page_by_page(keys: Keys, clock: Clock) -> None:
    """Three at the same second between two others: a page may end among them."""
    for name, wait_s in (("a", 1), ("b", 1), ("c", 0), ("d", 0), ("e", 1)):
        clock.now_s += wait_s
        await keys.create(NewKey(name, "team"), by=CLI)
    whole = await keys.list(limit=10)
    assert [row.name for row in (whole[0], whole[-1])] == ["e", "a"]
    assert {row.name for row in whole[1:4]} == {"b", "c", "d"}
    paged, after = [], None
    while page := await keys.list(limit=2, after=after):
        assert len(page) <= 2
        paged += page
        after = page[-1].id
    assert paged == whole


async def test_a_role_that_left_the_configuration_takes_its_keys_with_it(
    keys: Keys, database: AsyncEngine, clock: Clock
) -> None:
    row, secret = await keys.create(NewKey("ci", "team"), by=CLI)
    _, other = await keys.create(NewKey("cd", "default"), by=CLI)
    later = Keys(database, {"default": ROLES["default"]}, clock=clock)
    await later.reload()
    assert not knows(later, secret)
    assert knows(later, other)
    assert {one.id for one in await later.list(limit=10)} >= {row.id}
    restored = Keys(database, ROLES, clock=clock)
    await restored.reload()
    assert knows(restored, secret)


async def test_another_process_sees_each_change_after_its_next_poll(
    keys: Keys, database: AsyncEngine, clock: Clock
) -> None:
    other, watcher = Keys(database, ROLES, clock=clock), Watcher(database)
    watcher.on_change(KIND, other.reload)
    row, secret = await keys.create(NewKey("ci", "team"), by=CLI)
    assert not knows(other, secret)
    await watcher.poll()
    assert knows(other, secret)
    await keys.update(row.id, disabled=True, by=CLI)
    await watcher.poll()
    assert not knows(other, secret)
    await keys.update(row.id, disabled=False, by=CLI)
    _, rotated = await keys.rotate(row.id, by=CLI)
    await watcher.poll()
    assert (knows(other, secret), knows(other, rotated)) == (False, True)
    await keys.delete(row.id, by=CLI)
    await watcher.poll()
    assert not knows(other, rotated)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_key_from_the_environment_works_is_never_stored_and_survives_a_reload(
    database: AsyncEngine, database_path: Path, clock: Clock
) -> None:
    keys = Keys(database, ROLES, clock=clock, given=[GivenKey("root", "admin", "sk-from-the-environment")])
    assert caller_of(keys, "sk-from-the-environment").key_id == "env:root"
    await keys.create(NewKey("ci", "team"), by=CLI)
    await keys.reload()
    assert caller_of(keys, "sk-from-the-environment").role.name == "admin"
    assert [row.name for row in await keys.list(limit=10)] == ["ci"]
    await database.dispose()
    digest = hashlib.sha256(b"sk-from-the-environment").hexdigest()
    assert digest.encode() not in database_path.read_bytes()


async def test_a_given_key_with_an_unknown_role_is_refused(database: AsyncEngine, clock: Clock) -> None:
    with pytest.raises(RoleUnknown):
        Keys(database, ROLES, clock=clock, given=[GivenKey("root", "boss", "sk-x")])


async def test_an_admin_exists_while_a_usable_key_has_the_role(keys: Keys) -> None:
    await keys.create(NewKey("ci", "team"), by=CLI)
    assert not await keys.admin_exists("admin")
    row, _ = await keys.create(NewKey("root", "admin"), by=CLI)
    assert await keys.admin_exists("admin")
    await keys.update(row.id, disabled=True, by=CLI)
    assert not await keys.admin_exists("admin")


async def test_an_expired_key_is_no_admin(keys: Keys, clock: Clock) -> None:
    await keys.create(NewKey("root", "admin", expires_at=int(clock.now_s) + 10), by=CLI)
    assert await keys.admin_exists("admin")
    clock.now_s += 11
    assert not await keys.admin_exists("admin")
