"""Settings for hypothesis, and the leak check of the other tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.leaks import no_leaks

__all__ = ["no_leaks"]

SLOW_IS_FINE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("quick", max_examples=10, **SLOW_IS_FINE)
settings.register_profile("default", max_examples=50, **SLOW_IS_FINE)
settings.register_profile("ci", max_examples=100, print_blob=True, **SLOW_IS_FINE)
settings.register_profile("long", max_examples=1_000, print_blob=True, **SLOW_IS_FINE)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "property_tests" in item.path.parts:
            item.add_marker(pytest.mark.timeout(600))
        if item.path.name in ("test_model.py", "test_algebra.py"):
            item.add_marker(pytest.mark.slow)
