"""What integration tests share beyond tests/conftest.py."""

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Whoever forgets the mark would have a test that neither part of `make test` runs."""
    item.add_marker(pytest.mark.integration)
