"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No test asserts a time: on a machine that is busy, an example or the making of one takes what it takes.
settings.register_profile("guardrail", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("guardrail")
