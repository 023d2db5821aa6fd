"""Settings for all tests: Hypothesis has no deadline, because a busy machine must not fail a test."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fsdecloud", deadline=None)
settings.load_profile("fsdecloud")
