"""Repeat."""

import os
import signal
import sys
import time
from pathlib import Path

from tuneport.artifacts import Dataset, Report
from tuneport.errors import UserError
from tuneport.step import Step, consumes, param, produces


class Count(Step):
    """Repeat a text."""

    shouted: Dataset = consumes("Text.")
    times: int = param("How often.", default=2, ge=1, le=1000)
    pause: float = param("Seconds to sleep.", default=0.0, ge=0)
    fail: str = param("How to fail.", default="")
    deaf: bool = param("Whether to ignore a request to stop.", default=False)
    counted: Report = produces("The repeated text.")

    def run(self):
        if self.deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        text = (self.shouted.path / "text.txt").read_text("utf-8")
        if self.fail == "user":
            raise UserError("fail='user': not valid; expected peace.\nTry again.")
        if self.fail == "bug":
            raise RuntimeError("a defect")
        if self.fail == "exit":
            sys.exit(7)
        if self.fail == "killed":
            os.kill(os.getpid(), 9)
        if self.fail == "memory":
            self.log.info("%d bytes", len(os.urandom(1 << 29)))
        if self.fail == "input":
            (self.shouted.path / "text.txt").write_text("changed")
        with (self.counted.path / "text.txt").open("w") as f:
            for i in range(self.times):
                f.write(f"{i} {text}\n")
                self.log.info("[%d/%d] written, offline=%s", i + 1, self.times, os.environ.get("HF_HUB_OFFLINE"))
        try:
            time.sleep(self.pause)
        except KeyboardInterrupt:
            with Path(os.environ["TOY_NOTES"]).open("a") as f:
                f.write("asked to stop\n")
            if self.deaf:
                time.sleep(60)
            raise
