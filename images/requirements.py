"""Print what pyproject.toml requires, with the named extras: `python requirements.py train`; for a layer of its own."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
extras = (project["optional-dependencies"][name] for name in sys.argv[1:])
print("\n".join(project["dependencies"] + [line for extra in extras for line in extra]))
