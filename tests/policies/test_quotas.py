"""Settings -> limits; how stores keep them is in `contracts/test_quota_store.py`."""

from policies.quotas import Limit, Measure, QuotaStore, limits_of
from policies.quotas_memory import MemoryQuotas
from policies.settings import LimitSettings


def test_limits_come_from_settings_with_their_scope_and_seconds() -> None:
    settings = [
        LimitSettings(per="1m", requests=60),
        LimitSettings(per="1d", tokens=0),
        LimitSettings(concurrent=4),
    ]
    assert limits_of(settings, scope="key_1/role") == [
        Limit("key_1/role", Measure.REQUESTS, 60, 60.0),
        Limit("key_1/role", Measure.TOKENS, 0, 86_400.0),
        Limit("key_1/role", Measure.CONCURRENT, 4, None),
    ]


def test_the_store_in_memory_is_a_quota_store() -> None:
    store: QuotaStore = MemoryQuotas(lambda: 0.0)
    assert {"reserve", "raise_to", "settle"} <= set(dir(store))
