"""A plugin of pytest that writes what the fakes of the Kubernetes API were asked, a line each, to RECORDED_REQUESTS."""

import os
from pathlib import Path

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have each fake write its requests down when it is closed."""
    (fake,) = {
        plugin.FakeKubernetes
        for plugin in session.config.pluginmanager.get_plugins()
        if hasattr(plugin, "FakeKubernetes")
    }
    close = fake.close

    def closing(self: object) -> None:
        with Path(os.environ["RECORDED_REQUESTS"]).open("a", encoding="utf-8") as file:
            file.writelines(f"{method} {path}\n" for method, path in self.requests)  # type: ignore[attr-defined]
        close(self)

    fake.close = closing
