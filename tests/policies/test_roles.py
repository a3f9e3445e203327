import pytest

from policies.quotas import Limit, Measure, Scope
from policies.roles import ADMIN, KINDS, Allowed, Caller, Role
from policies.settings import LimitSettings, RoleSettings
from policies.spans import Rolling


@pytest.mark.parametrize(
    ("globs", "name", "inside"),
    [
        (["*"], "anything/at all", True),
        ([], "anything", False),
        (["gpt-4o"], "gpt-4o", True),
        (["gpt-4o"], "gpt-4o-mini", False),
        (["gpt-4o"], "my-gpt-4o", False),
        (["gpt-*"], "gpt-4o-mini", True),
        (["team/*"], "team/a/b", True),
        (["*/small"], "team/a/small", True),
        (["/v1/*"], "/v1/chat/completions", True),
        (["/v1/*"], "/admin/keys", False),
        (["/v1/*"], "/v1", False),
        (["GPT-*"], "gpt-4o", False),
        (["gpt-?"], "gpt-4", True),
        (["gpt-?"], "gpt-4o", False),
        (["[ab]*"], "beta", True),
        (["[!ab]*"], "beta", False),
        (["a.c"], "abc", False),
        (["nope", "gpt-*"], "gpt-4", True),
        (["gpt-4"], "gpt-4\n", False),
        (["gpt|*"], "gpt", False),
    ],
)
def test_globs(globs: list[str], name: str, inside: bool) -> None:
    assert (name in Allowed(globs)) is inside


def caller(role: RoleSettings, **narrowed: list[str]) -> Caller:
    return Caller("key_1", "ci", Role(role), tuple((kind, Allowed(globs)) for kind, globs in narrowed.items()))


def test_a_key_narrows_its_role_and_never_widens_it() -> None:
    one = caller(RoleSettings(name="dev", models=["gpt-*", "llama"]), models=["gpt-4*", "claude"])
    assert [name for name in ("gpt-4o", "gpt-3", "llama", "claude") if one.may("models", name)] == ["gpt-4o"]


def test_narrowing_one_kind_leaves_the_others_alone() -> None:
    one = caller(RoleSettings(name="dev", collections=["docs"]), models=[])
    assert not one.may("models", "gpt-4o")
    assert one.may("collections", "docs")
    assert one.may("prompts", "summarize")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_list_of_its_own(kind: str) -> None:
    nothing = {other: [] for other in KINDS}
    one = caller(RoleSettings.model_validate({"name": "dev", **nothing, kind: ["x"]}))
    assert [other for other in KINDS if one.may(other, "x")] == [kind]


def test_only_the_admin_role_reaches_the_admin_paths_by_itself() -> None:
    assert caller(ADMIN).may("paths", "/admin/keys")
    assert caller(ADMIN).may("collections", "secret")
    assert not caller(RoleSettings(name="default")).may("paths", "/admin/keys")


def test_limits_of_role_and_key_all_hold_and_keys_do_not_share_a_counter() -> None:
    role = RoleSettings(name="dev", limits=[LimitSettings(per="1m", requests=5)])
    one = Caller("key_1", "ci", Role(role), own_limits=(LimitSettings(per="1m", requests=2),))
    other = Caller("key_2", "ci", Role(role))
    assert one.limits == (
        Limit(Scope("key_1"), Measure.REQUESTS, 5, Rolling(60.0)),
        Limit(Scope("key_1"), Measure.REQUESTS, 2, Rolling(60.0)),
    )
    assert not {limit.scope for limit in one.limits} & {limit.scope for limit in other.limits}


def test_a_shared_role_pools_the_limits_of_its_keys_and_leaves_their_own_alone() -> None:
    role = RoleSettings(name="dev", shared=True, limits=[LimitSettings(per="1m", requests=5)])
    one = Caller("key_1", "ci", Role(role), own_limits=(LimitSettings(per="1m", requests=2),))
    other = Caller("key_2", "ci", Role(role))
    assert one.limits == (
        Limit(Scope("role:dev"), Measure.REQUESTS, 5, Rolling(60.0)),
        Limit(Scope("key_1"), Measure.REQUESTS, 2, Rolling(60.0)),
    )
    assert other.limits == one.limits[:1]


def test_a_limit_of_a_model_counts_requests_for_that_model_only() -> None:
    limits = (LimitSettings(per="1m", requests=5), LimitSettings(per="1m", requests=2, model="gpt-4*"))
    one = Caller("key_1", "ci", Role(RoleSettings(name="dev")), own_limits=limits)
    assert [limit.amount for limit in one.limits_for("gpt-4o")] == [5, 2]
    assert [limit.amount for limit in one.limits_for("llama")] == [5]
    assert one.limits_for("llama") is one.limits_for("other")
    assert one.limits_any(Measure.REQUESTS)
    assert not one.limits_any(Measure.TOKENS, Measure.COST)
