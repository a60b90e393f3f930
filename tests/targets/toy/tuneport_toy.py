"""`python -m toy.tuneport_toy run toy …`: the tuneport command over this pipeline."""

import sys

import toy as toy_stages
from toy.count import Count
from toy.publish import Publish
from toy.shout import Shout
from tuneport.cli.main import main
from tuneport.errors import UserError
from tuneport.graph import trace


def toy():
    """Shout and count."""
    shout = Shout()
    count = Count(shouted=shout.shouted)
    Publish(counted=count.counted)
    return {"counted": count.counted}


def load(name):
    if name != "toy":
        raise UserError(f"unknown pipeline '{name}'; there are: toy.")
    return trace(toy, name)


if __name__ == "__main__":
    stages = ["shout", "count", "publish"]
    sys.exit(main(sys.argv[1:], names=lambda: ["toy"], load=load, stages=lambda: stages, load_stage=toy_stages.load))
