"""Each target's settings are refused as other values are: what was got, what was expected, what to do."""

from pathlib import Path

import pytest

from tuneport import targets
from tuneport.errors import UserError
from tuneport.runner.request import Request


@pytest.mark.parametrize(
    ("target", "section", "message"),
    [
        ("kfp", {}, "platform.kfp.images: is required on kfp. Set it in the configuration."),
        ("docker", {"netwrk": "host"}, "platform.docker.netwrk='host': unknown setting; there are: images, gpus, "),
        ("docker", {"netwrk": "host"}, "Did you mean 'network'?"),
        ("docker", {"gpus": "some"}, "platform.docker.gpus='some': not valid; expected 'auto', 'all' or 'none'."),
        ("docker", {"memory": "lots"}, "platform.docker.memory='lots': not valid; expected text that matches "),
        ("kfp", {"retries": {"cuont": 1}}, "platform.kfp.retries.cuont=1: unknown setting; there are: count, "),
        ("kfp", {"namespace": "Team_A"}, "platform.kfp.namespace='Team_A': not valid; expected "),
    ],
)
def test_a_setting_is_refused_in_the_words_of_all_messages(target: str, section: object, message: str) -> None:
    request = Request(output_dir=Path("/r"), folder=Path("/"), environment={}, platform={target: section})
    with pytest.raises(UserError) as e:
        targets.settings(targets.load(target), request)
    assert message in str(e.value)
