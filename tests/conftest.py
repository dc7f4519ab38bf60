"""Fixtures that several test files share."""

import pytest

from workbench.world import World


@pytest.fixture(scope="session")
def world() -> World:
    """The embedded world with seed 0."""
    return World.load()
