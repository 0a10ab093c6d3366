"""What several tests of data share."""

import pytest


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A data folder and a working directory of one's own; where prepared corpora lie."""
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "prepared"
