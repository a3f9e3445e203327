import pytest

from policies.errors import KeysThrottled, KeyUnknown
from policies.failed_keys import MAX_ADDRESSES, FailedKeys, network_of
from policies.roles import Caller, Role
from policies.settings import RoleSettings

ONE = Caller("key_1", "one", Role(RoleSettings(name="default")))
OTHER = Caller("key_2", "other", Role(RoleSettings(name="default")))


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def failed(clock: Clock) -> FailedKeys:
    return FailedKeys(3, clock=clock)


def fail(failed: FailedKeys, address: str, times: int) -> None:
    for _ in range(times):
        with pytest.raises(KeyUnknown):
            failed.judged(address, "sk-guess", None)


def test_after_too_many_unknown_keys_a_guess_is_not_looked_at(failed: FailedKeys, clock: Clock) -> None:
    assert failed.judged("10.0.0.1", "sk", ONE) is ONE
    fail(failed, "10.0.0.1", 3)
    for guess in (None, OTHER):  # right or wrong, it is not said
        with pytest.raises(KeysThrottled) as caught:
            failed.judged("10.0.0.1", "sk-another", guess)
        assert 0 < caught.value.retry_after_s <= 60
    assert failed.judged("10.0.0.1", "sk", ONE) is ONE, "who was let in before still is"
    with pytest.raises(KeyUnknown):
        failed.judged("10.0.0.1", "sk", None)  # a key that ended
    assert failed.judged("10.0.0.2", "sk", OTHER) is OTHER, "other addresses have nothing to do with it"
    clock.now_s += 60
    assert failed.judged("10.0.0.1", "sk-another", OTHER) is OTHER
    fail(failed, "10.0.0.1", 3)


def test_failures_of_different_minutes_do_not_add_up(failed: FailedKeys, clock: Clock) -> None:
    for _ in range(5):
        fail(failed, "10.0.0.1", 2)
        clock.now_s += 60
    assert failed.judged("10.0.0.1", "sk", OTHER) is OTHER


def test_the_addresses_of_one_network_of_ipv6_are_one(failed: FailedKeys) -> None:
    fail(failed, "2001:db8::1", 2)
    fail(failed, "2001:db8::ffff:1", 1)
    with pytest.raises(KeysThrottled):
        failed.judged("2001:db8::2", "sk", ONE)
    assert failed.judged("2001:db8:0:1::1", "sk", ONE) is ONE
    assert network_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert network_of("/run/socket") == "/run/socket"


def test_it_can_be_switched_off(clock: Clock) -> None:
    failed = FailedKeys(None, clock=clock)
    fail(failed, "10.0.0.1", 100)
    assert failed.judged("10.0.0.1", "sk", ONE) is ONE


def test_an_address_that_is_one_too_many_is_told_of_once(clock: Clock) -> None:
    told: list[str] = []
    failed = FailedKeys(2, clock=clock, throttled=told.append)
    fail(failed, "10.0.0.1", 2)
    for _ in range(3):
        with pytest.raises(KeysThrottled):
            failed.judged("10.0.0.1", "sk", None)
    assert told == ["10.0.0.1"]


def test_what_is_remembered_has_a_bound(failed: FailedKeys) -> None:
    for number in range(MAX_ADDRESSES + 10):
        fail(failed, f"host-{number}", 1)
    assert len(failed._failures) == MAX_ADDRESSES


def test_a_key_that_was_unknown_a_moment_ago_is_no_guess(failed: FailedKeys) -> None:
    with pytest.raises(KeyUnknown):
        failed.judged("10.0.0.1", "sk-new", None)
    fail(failed, "10.0.0.1", 2)
    with pytest.raises(KeysThrottled):
        failed.judged("10.0.0.1", "sk-new", None)
    assert failed.judged("10.0.0.1", "sk-new", ONE) is ONE
    with pytest.raises(KeysThrottled):
        failed.judged("10.0.0.1", "sk-other", OTHER)
