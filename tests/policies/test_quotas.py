"""Settings -> limits; how stores keep them is in `contracts/test_quota_store.py`."""

from policies.quotas import Limit, Measure, QuotaStore, Scope, limits_of
from policies.quotas_memory import MemoryQuotas
from policies.settings import LimitSettings
from policies.spans import Calendar, Rolling


def test_limits_come_from_settings_with_their_scope_and_seconds() -> None:
    settings = [
        LimitSettings(per="1m", requests=60),
        LimitSettings(per="1d", tokens=0),
        LimitSettings(concurrent=4),
        LimitSettings(per="month", cost_usd=1.5, model="gpt-4*"),
        LimitSettings(per="1h", compute_s=90.5),
    ]
    assert limits_of(settings, holder="key_1") == [
        Limit(Scope("key_1"), Measure.REQUESTS, 60, Rolling(60.0)),
        Limit(Scope("key_1"), Measure.TOKENS, 0, Rolling(86_400.0)),
        Limit(Scope("key_1"), Measure.CONCURRENT, 4, None),
        Limit(Scope("key_1", "gpt-4*"), Measure.COST, 1_500_000_000, Calendar("month")),
        Limit(Scope("key_1"), Measure.COMPUTE, 90_500, Rolling(3600.0)),
    ]


def test_the_store_in_memory_is_a_quota_store() -> None:
    store: QuotaStore = MemoryQuotas(lambda: 0.0)
    assert {"reserve", "raise_to", "settle", "standing", "charge", "drain"} <= set(dir(store))
