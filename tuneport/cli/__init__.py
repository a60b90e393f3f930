"""The command lines: `python -m steps STAGE …` and `tuneport COMMAND …`; `cmd_*` is one command each."""

import os

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # pydantic seeks them in every package, at each start
