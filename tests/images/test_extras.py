"""What the images install is said in two places, with digests and without, which agree."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_both_ways_to_install_an_image_name_the_same_extras() -> None:
    makefile, script = (ROOT / "Makefile").read_text("utf-8"), (ROOT / "images" / "install.sh").read_text("utf-8")
    variables = dict(re.findall(r"^(STORES|TRAINER) = (.*)$", makefile, re.MULTILINE))
    locked = {name: re.findall(r"--extra ([\w-]+)", line) for name, line in variables.items()}
    installed = {name: extras.split() for name, extras in re.findall(r'^(\w+)\) extras="(.*)"', script, re.MULTILINE)}
    assert installed["base"] == locked["STORES"]
    assert installed["trainer"] == [*locked["STORES"], *locked["TRAINER"]]
    assert installed["deepspeed"] == [*installed["trainer"], "deepspeed"]
