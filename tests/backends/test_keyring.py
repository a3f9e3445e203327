"""Several keys of one provider: one until it is refused, then the next; the refused one rests."""

from backends.keyring import LIMITED_REST_S, REFUSED_REST_S, KeyRing


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def ring(size: int = 3) -> tuple[KeyRing, Clock]:
    clock = Clock()
    return KeyRing([{"authorization": f"Bearer {number}"} for number in range(size)], clock), clock


def first(keys: KeyRing) -> int:
    return next(keys.turns())


def test_one_key_is_used_until_it_is_refused() -> None:
    keys, clock = ring()
    assert [first(keys), first(keys)] == [0, 0]
    keys.refused(0, 429, "7")
    assert list(keys.turns()) == [1, 2]
    clock.now_s += 7
    keys.refused(1, 401, None)
    assert list(keys.turns()) == [2, 0]
    clock.now_s += REFUSED_REST_S
    assert sorted(keys.turns()) == [0, 1, 2]


def test_one_request_tries_each_key_that_does_not_rest_once() -> None:
    keys, _ = ring()
    seen = []
    for index in keys.turns():
        seen.append(index)
        keys.refused(index, 429, None)
    assert seen == [0, 1, 2]


def test_when_all_rest_the_one_that_wakes_first_is_asked() -> None:
    keys, clock = ring()
    for index, after in enumerate(("60", "5", "30")):
        keys.refused(index, 429, after)
    assert list(keys.turns()) == [1]
    clock.now_s += 5
    assert list(keys.turns()) == [1]


def test_what_says_nothing_of_time_rests_for_a_while() -> None:
    for said in (None, "", "soon", "-3"):
        keys, clock = ring(2)
        keys.refused(0, 429, said)
        clock.now_s += LIMITED_REST_S - 0.1
        assert list(keys.turns()) == [1], said
        clock.now_s += 0.2
        assert sorted(keys.turns()) == [0, 1], said


def test_a_date_is_understood() -> None:
    keys, clock = ring(2)
    keys.refused(0, 429, "Fri, 31 Dec 2100 23:59:59 GMT")
    clock.now_s += 86_400
    assert list(keys.turns()) == [1]


def test_without_a_key_there_is_one_turn_without_headers() -> None:
    keys = KeyRing([])
    assert (list(keys.turns()), keys.added_to({"a": "b"})) == ([0], [{"a": "b"}])
