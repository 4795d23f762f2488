"""No test writes into the user's cache."""

import pytest

from jaxmdn import cli


@pytest.fixture(autouse=True)
def keep_nothing(monkeypatch):
    monkeypatch.setattr(cli, "_keep_compiled", lambda command: None)
