"""model_import: sources become one canonical folder; damaged and hostile ones are refused and leave nothing."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import steps
from steps.model_import import ModelImport
from tuneport.artifacts import CustomMLflowModel, CustomModel, Model, read_manifest
from tuneport.errors import UserError
from tuneport.stage import execute


def run(source: Path, output: Path) -> Path:
    execute(ModelImport(pytorch_model_path=CustomModel(source), model_selector_output=Model(output)))
    return output


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "source"))


def refused(source: Path, tmp_path: Path) -> str:
    with pytest.raises(UserError) as e:
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*partial"))
    return str(e.value)


def test_a_plain_folder_is_copied_and_sealed_with_a_manifest(tiny_model: Path, tmp_path: Path) -> None:
    out = run(tiny_model, tmp_path / "out")
    assert (out / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    listed = read_manifest(Model(out))["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(listed)


def test_importing_twice_gives_the_same_manifest(tiny_model: Path, tmp_path: Path) -> None:
    first, second = run(tiny_model, tmp_path / "a"), run(tiny_model, tmp_path / "b")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


def test_safetensors_need_no_torch(tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from steps.__main__ import run_stage; import steps;"
        "code = run_stage(sys.argv[1:], names=steps.names(), load=steps.load);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; sys.exit(code)"
    )
    flags = ["--pytorch_model_path", str(tiny_model), "--model_selector_output", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", code, "model_import", *flags], check=True)


def test_pickled_weights_become_safetensors_with_equal_values(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    out = run(copy, tmp_path / "out")
    imported = load_file(out / "model.safetensors")
    assert imported.keys() == weights.keys()
    assert all(torch.equal(imported[name], weights[name]) for name in weights)
    assert not list(out.glob("*.bin"))


def test_pickled_shards_are_joined(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, keys in shards.items():
        torch.save({k: weights[k] for k in keys}, copy / file)
    index = {"weight_map": {k: file for file, keys in shards.items() for k in keys}}
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert load_file(run(copy, tmp_path / "out") / "model.safetensors").keys() == weights.keys()
    (copy / "pytorch_model-2.bin").unlink()
    assert "pytorch_model-2.bin" in refused(copy, tmp_path / "again")


class Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.file}'",)


def test_a_malicious_pickle_is_refused_and_not_run(copy: Path, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    (copy / "model.safetensors").unlink()
    torch.save({"weight": Payload(trap)}, copy / "pytorch_model.bin")
    message = refused(copy, tmp_path)
    assert "pytorch_model.bin" in message and "refused" in message and "system" in message
    assert not trap.exists()


def test_a_truncated_safetensors_file_is_refused_by_name(copy: Path, tmp_path: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors: is damaged" in refused(copy, tmp_path)


def test_a_safetensors_file_with_a_garbled_header_is_refused(copy: Path, tmp_path: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])
    assert "model.safetensors: is damaged" in refused(copy, tmp_path)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_name(missing: str, says: str, copy: Path, tmp_path: Path) -> None:
    (copy / missing).unlink()
    assert says in refused(copy, tmp_path)


def test_a_damaged_tokenizer_is_refused_by_name(copy: Path, tmp_path: Path) -> None:
    (copy / "tokenizer.json").write_text('{"model": ')
    assert "tokenizer.json: is damaged" in refused(copy, tmp_path)


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **values}), "utf-8")


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8"])
def test_quantised_weights_are_refused_before_anything_runs(copy: Path, tmp_path: Path, method: str) -> None:
    change_config(copy, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(UserError, match=rf"quantised \({method}\), and such weights cannot be trained"):
        ModelImport(pytorch_model_path=CustomModel(copy)).check_files()
    assert "Import the model that they were made from" in refused(copy, tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_refused_by_both_numbers(
    copy: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    known = json.loads((copy / "config.json").read_text("utf-8"))["vocab_size"]
    tokenizer.add_tokens(["<extra>", "<more>"])
    tokenizer.save(str(copy / "tokenizer.json"))
    message = refused(copy, tmp_path)
    assert f"the token '<more>' with the id {known + 1}, but the model has embeddings for {known} tokens" in message
    assert f"resize the embeddings to {known + 2} tokens" in message
    change_config(copy, vocab_size=known + 2)
    run(copy, tmp_path / "out")


@pytest.mark.parametrize("value", [5000, [5, 5000], -7])
def test_a_special_id_outside_of_the_vocabulary_is_refused(value: Any, copy: Path, tmp_path: Path) -> None:
    known = json.loads((copy / "config.json").read_text("utf-8"))["vocab_size"]
    change_config(copy, eos_token_id=value)
    strange = value[-1] if isinstance(value, list) else value
    expected = f"config.json: eos_token_id={strange}, but the model has embeddings for the ids 0 to {known - 1}"
    assert expected in refused(copy, tmp_path)
    change_config(copy, eos_token_id=-1)
    run(copy, tmp_path / "out")


def test_a_tokenizer_without_settings_is_enough_for_what_follows(
    copy: Path, tmp_path: Path, questions: list[dict[str, str]], write_jsonl: Callable[..., Path]
) -> None:
    (copy / "tokenizer_config.json").unlink()
    base = run(copy, tmp_path / "base")
    assert json.loads((base / "tokenizer_config.json").read_text("utf-8")) == {}
    data = write_jsonl(tmp_path / "rows.jsonl", questions)
    inputs = {"model_selector_output": base, "train_file_path": data, "preprocess_output": tmp_path / "prepared"}
    execute(steps.load("preprocess", "text_classification")(**inputs, sentence1_key="text", label_key="label"))
    assert json.loads((tmp_path / "prepared" / "dataset.json").read_text("utf-8"))["max_seq_length"] > 8


def test_a_lone_adapter_is_explained(copy: Path, tmp_path: Path) -> None:
    (copy / "config.json").rename(copy / "adapter_config.json")
    assert "LoRA adapter" in refused(copy, tmp_path)


def test_a_model_that_needs_its_own_code_is_refused(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoModel": "modeling_homemade.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    assert "'homemade' runs code" in refused(copy, tmp_path)


def test_a_vocabulary_without_tokenizer_json_is_converted(copy: Path, tmp_path: Path) -> None:
    vocabulary: dict[str, int] = json.loads((copy / "tokenizer.json").read_text())["model"]["vocab"]
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=lambda token: vocabulary[token])))
    (copy / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    out = run(copy, tmp_path / "out")
    from tokenizers import Tokenizer

    assert Tokenizer.from_file(str(out / "tokenizer.json")).encode("red cat").tokens == ["[CLS]", "red", "cat", "[SEP]"]


@pytest.mark.parametrize("kind", ["marian", "m2m_100"])
def test_a_tokenizer_that_has_no_fast_version_is_refused_with_the_remedy(kind: str, copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    for name in ("source.spm", "target.spm", "sentencepiece.bpe.model"):
        (copy / name).write_bytes(b"a SentencePiece model")
    (copy / "vocab.json").write_text('{"</s>": 0, "<unk>": 1, "<pad>": 2}')
    message = refused(copy, tmp_path)
    assert f"the tokenizer of this {kind} model cannot be made a tokenizer.json" in message
    assert "Add its tokenizer.json to the folder" in message and len(message) < 800


@pytest.mark.parametrize("layout", ["transformers", "hftransformersv2"])
def test_mlflow_layouts_are_read(layout: str, tiny_model: Path, tmp_path: Path) -> None:
    root = tmp_path / "mlflow"
    parts = {
        "transformers": ("model", "components/tokenizer", "model"),
        "hftransformersv2": ("data/model", "data/tokenizer", "data/config"),
    }[layout]
    for folder, pattern in zip(parts, ("model.safetensors", "tokenizer*", "config.json"), strict=True):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file in tiny_model.glob(pattern):
            shutil.copy(file, root / folder)
    (root / "MLmodel").write_text(f"flavors:\n  {layout}: {{}}\n")
    execute(ModelImport(mlflow_model_path=CustomMLflowModel(root), model_selector_output=Model(tmp_path / "out")))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("both", "says"), [(True, "got both"), (False, "got none of them")])
def test_exactly_one_model_input_is_wanted(both: bool, says: str, tiny_model: Path, tmp_path: Path) -> None:
    models = ["--pytorch_model_path", str(tiny_model), "--mlflow_model_path", str(tiny_model)] if both else []
    command = [sys.executable, "-m", "steps", "model_import", *models, "--model_selector_output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["it's", 'quo"ted', "back\\slash", "two words", "ünï-模型", "new\nline", "$(touch x)"])
def test_any_path_works(name: str, tiny_model: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_model, tmp_path / name))
    assert (run(source, tmp_path / f"out {name}") / "manifest.json").is_file()


@pytest.mark.parametrize("text", ["{", "[1]", '{"a":' * 100_000 + "1" + "}" * 100_000], ids=["cut", "list", "deep"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_odd_settings_are_refused_by_name(name: str, text: str, copy: Path, tmp_path: Path) -> None:
    (copy / name).write_text(text)
    message = refused(copy, tmp_path)
    assert message.startswith(f"{copy / name}: ") and len(message) < 400


def test_an_odd_mlmodel_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "MLmodel").write_text("[" * 100_000)
    source = CustomMLflowModel(tmp_path / "source")
    with pytest.raises(UserError, match=r"MLmodel: is not YAML \(nested too deep\)"):
        execute(ModelImport(mlflow_model_path=source, model_selector_output=Model(tmp_path / "out")))


# -- what leads out of the folder --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["chat_template_x.jinja", "chat_template.jinja", "vocab.secret", "README.md", "notes/deep", "x.safetensors"]
)
def test_a_link_out_of_a_model_s_folder_is_refused_by_name(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to("/etc/passwd")
    assert f"{name}: is a link to '/etc/passwd', outside of" in refused(copy, tmp_path)


def test_files_are_taken_by_known_names_alone(copy: Path, tmp_path: Path) -> None:
    for name in ("chat_template_x.jinja", "chat_templates", "vocab.secret", "private.model", "x.tiktoken"):
        (copy / name).write_text("secret")
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    out = run(copy, tmp_path / "out")
    names = {path.name for path in out.iterdir()}
    assert "chat_template.jinja" in names
    assert not names & {"chat_template_x.jinja", "chat_templates", "vocab.secret", "private.model", "x.tiktoken"}


@pytest.mark.parametrize(
    "shard", ["../../x.safetensors", "/etc/passwd", "config.json", "..", ".x.safetensors", 3, "*.safetensors"]
)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_names_files_of_weights_beside_it(copy: Path, tmp_path: Path, index: str, shard: object) -> None:
    (copy / "model.safetensors").unlink()
    (copy / index).write_text(json.dumps({"weight_map": {"a": shard}}))
    assert f"{index}: is damaged" in refused(copy, tmp_path)


def test_code_and_files_elsewhere_that_settings_name_are_left_out(copy: Path, tmp_path: Path) -> None:
    for name, more in (
        ("config.json", {"auto_map": {"AutoModel": "../../x--m.Class"}, "transformers_weights": "../../x.safetensors"}),
        (
            "tokenizer_config.json",
            {
                "auto_map": {"AutoTokenizer": ["m.T", None]},
                "vocab_file": "/etc/passwd",
                "special_tokens_map_file": "/srv/elsewhere/x.json",
                "tokenizer_file": "tokenizer.json",
            },
        ),
    ):
        (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | more))
    out = run(copy, tmp_path / "out")
    config, settings = (json.loads((out / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    assert not {"auto_map", "transformers_weights"} & config.keys()
    assert not {"auto_map", "vocab_file", "special_tokens_map_file"} & settings.keys()
    assert settings["tokenizer_file"] == "tokenizer.json"


def test_a_compressed_archive_of_pickled_weights_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1000)}, copy / "stored.bin")
    with (
        zipfile.ZipFile(copy / "stored.bin") as stored,
        zipfile.ZipFile(copy / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert "is compressed; expected weights as torch saves them" in refused(copy, tmp_path)


def test_a_tensor_that_stands_for_more_than_its_file_holds_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"embeddings": torch.zeros(1).expand(10**12)}, copy / "pytorch_model.bin")
    assert "'embeddings' stands for more numbers than the file holds" in refused(copy, tmp_path)


def test_no_archive_is_unpacked(copy: Path, tmp_path: Path) -> None:
    (copy / "config.json").unlink()
    (copy / "x.txt").write_text("x")
    for form in ("zip", "tar", "gztar"):
        shutil.make_archive(str(tmp_path / "model"), form, copy)
    for archive in tmp_path.glob("model.*"):
        assert "is a file; expected the model's folder" in refused(archive, tmp_path)


@pytest.mark.parametrize("named", ["../secret", "/etc", "model/../../secret", "", "./", "*", "\0", 300 * "a"])
def test_an_mlmodel_names_a_folder_below_its_own(copy: Path, tmp_path: Path, named: str) -> None:
    shutil.copytree(copy, tmp_path / "secret")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "MLmodel").write_text(
        json.dumps({"flavors": {"transformers": {"model_binary": named, "code": "../secret"}}})
    )
    with pytest.raises(UserError, match=r"saved: has no config\.json"):
        execute(
            ModelImport(
                mlflow_model_path=CustomMLflowModel(tmp_path / "saved"), model_selector_output=Model(tmp_path / "out")
            )
        )


def test_a_model_in_a_store_is_refused_by_its_address(tmp_path: Path) -> None:
    step = ModelImport(pytorch_model_path="s3://bucket//models/base", model_selector_output=Model(tmp_path / "out"))
    with pytest.raises(UserError, match=r"pytorch_model_path=s3://bucket//models/base: is no path of this machine"):
        step.check_files()
