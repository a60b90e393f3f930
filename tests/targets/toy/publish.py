"""Publish."""

from tuneport.artifacts import Registration, Report
from tuneport.step import Step, consumes, param, produces


class Publish(Step):
    """Publish a text."""

    cacheable = False
    network = True
    only_if = "name_to_publish"

    counted: Report = consumes("Text.")
    name_to_publish: str | None = param("Name.", default=None)
    published: Registration = produces("Where it stands.")

    def run(self):
        (self.published.path / "name.txt").write_text(self.name_to_publish)
