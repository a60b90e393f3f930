"""What a person sees of a run on a real terminal, while it runs and at its end, at 80 and at 120 columns."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from tests.terminal import screens, written
from tests.toy_command import Toy
from tuneport.runner import ending
from tuneport.runner.stage_lines import StageState

METRICS = {
    "main": ["accuracy", "f1_macro", "mcc"],
    "headline": "accuracy",
    "test_rows": 1200,
    "base_has_head": False,
    "tuned": {
        "metrics": {"accuracy": 0.942, "f1_macro": 0.931, "mcc": 0.9, "auc": None},
        "intervals": {"accuracy": [0.93, 0.955], "f1_macro": [0.92, 0.94], "mcc": [0.88, 0.92]},
    },
    "base": {"metrics": {"accuracy": 0.25, "f1_macro": 0.1, "mcc": 0.0}, "intervals": {"accuracy": [0.22, 0.28]}},
    "baselines": {"majority class": {"metrics": {"accuracy": 0.3, "f1_macro": None, "mcc": 0.0}, "intervals": {}}},
    "verdict": {
        "level": "good",
        "headline": "Better than the base model and every trivial baseline",
        "sentences": ["On 1,200 test rows the tuned model is right in 94.2 %."],
    },
}
TRAINING = (
    "loss 0.4321, learning rate 2.00e-05, gradient norm 1.2, 1,234 tokens/s, 12.3 samples/s, 0% padding, "
    "memory 1.2 GB, 1:40 left"
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy pipeline, whose second stage speaks as a training and an evaluation do."""
    toy = Toy(tmp_path_factory.mktemp("terminal") / "desk")
    source = toy.package / "count.py"
    spoken = (
        f"        self.log.info('[%d/%d] %s', 120, 400, {TRAINING!r})\n"
        "        self.log.info('[120/400] validation: loss 0.4, accuracy 0.9142, f1_macro 0.9')\n"
        "        time.sleep(0.6)\n"
        "        self.log.warning('three rows are alike')\n"
        f"        (self.counted.path / 'metrics.json').write_text({json.dumps(METRICS)!r})\n"
        "        (self.counted.path / 'report.html').write_text('')\n"
        "        if self.deaf:\n"
    )
    source.write_text(source.read_text().replace("        if self.deaf:\n", spoken, 1))
    return toy


@pytest.mark.parametrize("columns", [80, 120])
def test_scores_verdict_warnings_and_commands_are_on_the_last_screen(toy: Toy, columns: int) -> None:
    name = f"wide-{columns}"
    command = toy.command("run", "toy", "text=text.txt", f"times={columns}", "--name", name)
    code, seen = screens(command, columns, toy.folder, toy.environment())
    assert code == 0
    last = "\n".join(seen[-1])
    assert re.search(r"^count +done +\d+\.\d s", last, re.MULTILINE)
    assert re.search(r"^ tuned model +0\.942 \(0\.930–0\.955\) +0\.931", last, re.MULTILINE)
    assert re.search(r"^ base model, untrained head +0\.250 \(0\.220–0\.280\)", last, re.MULTILINE)
    assert re.search(r"^ majority class +0\.300 +– +0\.000", last, re.MULTILINE)
    assert ("0.900 (0.880–0.920)" in last) == (columns == 120), "there is no room for all intervals"
    words = " ".join(last.split())
    assert "Better than the base model and every trivial baseline. On 1,200 test rows the tuned model" in words
    assert "Warnings: count: three rows are alike" in words
    assert "counted: The repeated text." in last
    joined = "".join("".join(seen[-1]).split())  # wherever a long command is broken
    assert f"{toy.folder}/runs/toy/{name}/count/counted/report.html" in joined
    assert "mlflowui--backend-store-uri" in joined and "--port5000" in joined


def test_the_live_row_has_bar_step_loss_metric_rate_and_time_left_and_no_log_prefix(toy: Toy) -> None:
    command = toy.command("run", "toy", "text=text.txt", "times=4", "--name", "live")
    _, seen = screens(command, 80, toy.folder, toy.environment())
    running = [screen for screen in seen if any("120/400" in line for line in screen)]
    assert running
    (row,) = [line for line in running[-1] if "120/400" in line]
    assert re.fullmatch(r"count +running +\d+\.\d s +━+[╸╺]?━+ +120/400", row)
    assert "  loss 0.4321  accuracy 0.9142  1,234 tokens/s  1:40 left" in running[-1]
    shown = "\n".join(line for screen in seen for line in screen)
    assert "tuneport.count" not in shown and not re.search(r"\d\d:\d\d:\d\d", shown)
    warned = next(screen for screen in seen if any("three rows" in line for line in screen))
    assert warned.index("count: warning: three rows are alike") < next(
        i for i, line in enumerate(warned) if line.startswith("shout")
    )


def test_off_a_terminal_the_same_is_said_in_plain_lines_and_quiet_says_little(toy: Toy) -> None:
    done = toy.run("times=5", "--name", "plain")
    assert " tuned model" in done.stdout and "\x1b" not in done.stdout
    assert "\nBetter than the base model and every trivial baseline. On 1,200" in done.stdout
    assert "\nWarnings:\n  count: three rows are alike\n" in done.stdout
    quiet = toy.run("times=6", "--name", "quiet", "--quiet")
    folder = toy.folder / "runs" / "toy" / "quiet"
    assert quiet.stdout == f"Better than the base model and every trivial baseline.\n{folder}\n"
    assert quiet.stderr == "count: warning: three rows are alike\n"


@pytest.mark.parametrize(
    ("arguments", "status", "code"), [(["times=7"], "finished", 0), (["fail=user"], "failed", 2), (["x=1"], "", 2)]
)
def test_json_is_one_object_that_fits_its_schema(toy: Toy, arguments: list[str], status: str, code: int) -> None:
    done = toy.run(*arguments, "--json", "--name", "as-json", "--force")
    assert done.returncode == code
    if not status:  # refused before there is a run
        assert done.stdout == "" and "unknown parameter 'x'" in done.stderr
        return
    found = json.loads(done.stdout)
    jsonschema.validate(found, ending.schema())
    assert found["status"] == status and found["run"].endswith("runs/toy/as-json")
    if status == "finished":
        assert found["verdict"] == METRICS["verdict"]["headline"]
        assert found["metrics"]["tuned model"] == METRICS["tuned"]["metrics"]
        assert found["warnings"] == [{"stage": "count", "text": "three rows are alike"}]
        assert Path(found["outputs"]["counted"]).is_dir()
    else:
        assert "expected peace" in found["error"] and "expected peace" in done.stderr


def test_what_a_training_says_is_read_from_its_own_line() -> None:
    from tuneport.training.callbacks import shown

    rates = {"tokens_per_second": 1234.5, "samples_per_second": 12.0, "padding_share": 0.0}
    numbers = {"loss": 1.25, "learning_rate": 2e-5, "cpu_memory_peak_gb": 1.0, "seconds_left": 61.0, **rates}
    state = StageState()
    state.take(f"12:00:00 tuneport.finetune [rank 0] [8/16] {shown(numbers)}")
    assert (state.done, state.total) == (8, 16)
    assert state.details() == "loss 1.2500  1,234 tokens/s  1:01 left"


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}])
def test_no_colour_is_written_where_none_is_asked_for(toy: Toy, variables: dict[str, str]) -> None:
    command = toy.command("run", "toy", "text=text.txt", "times=8", "--name", f"colours-{len(variables)}")
    _, chunks = written(command, 80, toy.folder, toy.environment(**variables))
    assert bool(re.search(rb"\x1b\[[0-9;]*3[0-7]m", b"".join(chunks))) == (not variables)
