"""Upper case."""

from typing import Literal

from tuneport.artifacts import Dataset, File
from tuneport.errors import UserError
from tuneport.step import Step, consumes, param, produces


class Shout(Step):
    """Upper-case a text."""

    text: File = consumes("Text.")
    suffix: str | None = param("Added at the end.", default=None)
    mark: Literal["!", "?"] = param("Punctuation.", default="!")
    trailing: str = param("Not used by the result.", default="")
    shouted: Dataset = produces("The text in upper case.")

    def check(self):
        if not self.text.path.is_file():
            raise UserError(f"text={self.text.path}: there is no such file.")

    def run(self):
        self.log.info("reading %s", self.text.path)
        text = self.text.path.read_text("utf-8").upper()
        (self.shouted.path / "text.txt").write_text(text + (self.suffix or "") + self.mark, "utf-8")
