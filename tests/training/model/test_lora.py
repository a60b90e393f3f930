"""LoRA: only adapters and heads change, and the adapter and the merged model that come out of it answer alike."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import TrainerCallback

import steps
from tuneport import tasks
from tuneport.artifacts import MLflowModel, Model, read_manifest, verify
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.modeling.merged_adapters import is_adapter, keep_together, load_merged
from tuneport.stage import execute
from tuneport.tracking import Run
from tuneport.training.model.lora import head_modules, target_modules
from tuneport.training.train import train

FAST = {
    "apply_lora": True,
    "learning_rate": 1e-2,
    "lora_alpha": 16,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 64,
    "num_train_epochs": 3,
    "save_total_limit": 1,
}


@pytest.fixture(scope="module")
def model(imported_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The imported folder of a tiny model without a head, by its kind, with the words of `questions`."""
    made = {"bert": imported_model}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = _make(kind, imported_model, tmp_path_factory.mktemp(kind))
        return made[kind]

    return make


def _make(kind: str, words: Path, folder: Path) -> Path:
    import transformers as tf

    tokenizer = tf.AutoTokenizer.from_pretrained(words)
    tokenizer.save_pretrained(folder / "model")
    ids: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    size: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bart = {f"{side}_{n}": v for side in ("encoder", "decoder") for n, v in (("layers", 1), ("attention_heads", 2))}
    bart |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32, "max_position_embeddings": 64}
    t5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    tf.set_seed(0)
    made: Any = {
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**ids, **size, intermediate_size=64)),
        "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **gpt2)),
        "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**ids, **t5)),
        "bart": lambda: tf.BartForConditionalGeneration(tf.BartConfig(**ids, **bart, decoder_start_token_id=3)),
    }[kind]()
    made.save_pretrained(folder / "model")
    values = {"pytorch_model_path": folder / "model", "model_selector_output": folder / "base"}
    execute(steps.load("model_import")(**values))
    return folder / "base"


TEMPLATES = {
    "translation": {"prompt_template": "{text}"},
    "chat_completion": {"chat_template": "{% for m in messages %}{{ m['content'] }} [SEP] {% endfor %}"},
}
FAMILIES = [
    ("text_classification", "bert"),
    ("text_classification", "llama"),
    ("text_classification", "t5"),
    ("text_classification", "bart"),
    ("token_classification", "bert"),
    ("token_classification", "gpt2"),
    ("token_classification", "t5"),
    ("question_answering", "bert"),
    ("question_answering", "gpt2"),
    ("question_answering", "t5"),
    ("summarization", "t5"),
    ("summarization", "llama"),
    ("translation", "bart"),
    ("translation", "gpt2"),
    ("text_generation", "llama"),
    ("text_generation", "gpt2"),
    ("chat_completion", "llama"),
]


@pytest.fixture(scope="module")
def prepared(
    model: Callable[[str], Path],
    task_rows: list[dict[str, Any]],
    task_columns: dict[str, dict[str, Any]],
    write_jsonl: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str], Path]:
    made: dict[tuple[str, str], Path] = {}

    def make(task: str, kind: str) -> Path:
        if (task, kind) not in made:
            folder = tmp_path_factory.mktemp("prepared")
            data = write_jsonl(folder / "rows.jsonl", task_rows)
            values = {
                "model_selector_output": model(kind),
                "train_file_path": data,
                **task_columns[task],
                **TEMPLATES.get(task, {}),
            }
            execute(steps.load("preprocess", task)(**values, preprocess_output=folder / "out"))
            made[task, kind] = folder / "out"
        return made[task, kind]

    return make


def finetune(task: str, base: Path, data: Path, output: Path, **values: Any) -> Path:
    inputs = {"model_selector_output": base, "preprocess_output": data, "pytorch_model_folder": output}
    execute(steps.load("finetune", task)(**inputs, **FAST | values))
    return output


def answers(task_name: str, loaded: Any, folder: Path, data: Path) -> tuple[list[Any], list[Any]]:
    """The predictor's answers to the test rows and, as numbers, the logits of one batch."""
    task, read = tasks.load(task_name), Prepared(data)
    meta, rows = read.info.meta, read.rows("test")
    predictor = task.predictor(str(folder), task.settings(meta, None), model=loaded.eval())
    found = predictor([task.asked(row) if hasattr(task, "asked") else row for row in rows])
    batch = task.collator(loaded, meta, None)(read.encoded("test").to_pylist())
    with torch.inference_mode():
        logits = loaded(**batch)[1]
    return found, logits.flatten()[:500].tolist()


@pytest.mark.parametrize(("task", "kind"), FAMILIES)
def test_only_adapters_and_heads_change_and_both_outputs_answer_alike(
    task: str, kind: str, model: Callable[[str], Path], prepared: Callable[[str, str], Path], tmp_path: Path
) -> None:
    base, data = model(kind), prepared(task, kind)
    adapter = finetune(task, base, data, tmp_path / "adapter", merge_lora_weights=False)
    plain = finetune(task, base, data, tmp_path / "plain")
    log = json.loads((adapter / "trainer_state.json").read_text())["log_history"]
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert min(losses[1:]) < losses[0]
    assert not (adapter / "model.safetensors").exists() and not (plain / "adapter_config.json").exists()

    meta, loader = Prepared(data).info.meta, tasks.load(task)
    torch.manual_seed(1)
    before = loader.load_model(base, meta)
    after = loader.load_model(plain, meta)
    heads = head_modules(before, base)
    adapted = {f"{name}.weight" for name in target_modules(before, "auto", heads)}
    old, new = before.state_dict(), after.state_dict()
    frozen = {n for n in old if n not in adapted and not n.startswith(tuple(f"{h}." for h in heads))}
    assert frozen and adapted and all(torch.equal(old[name], new[name]) for name in frozen)
    assert any(not torch.equal(old[name], new[name]) for name in adapted)
    saved = load_file(adapter / "adapter_model.safetensors")
    assert all("lora_" in name or any(f".{head}." in name for head in heads) for name in saved)

    together = Path(shutil.copytree(adapter, tmp_path / "together"))
    assert keep_together(base, together)
    whole, merged = loader.load_model(together, meta).state_dict(), load_merged(adapter, base).state_dict()
    assert whole.keys() == merged.keys() and all(torch.equal(whole[name], merged[name]) for name in merged)

    first, numbers = answers(task, after, plain, data)
    second, others = answers(task, load_merged(adapter, base), adapter, data)
    kept = [i for i, number in enumerate(numbers) if number > -1e30]  # no answer begins or ends at padding
    assert [others[i] for i in kept] == pytest.approx([numbers[i] for i in kept], abs=1e-4)
    assert [sorted(map(str, a)) for a in first] == [sorted(map(str, a)) for a in second]
    if "label" in first[0]:
        assert [a["label"] for a in first] == [a["label"] for a in second]


def test_a_lora_parameter_without_lora_is_refused(model: Callable[[str], Path], tmp_path: Path) -> None:
    data = tmp_path
    stage = steps.load("finetune", "text_classification")(
        model_selector_output=model("bert"), preprocess_output=data, lora_r=16, merge_lora_weights=False
    )
    with pytest.raises(UserError, match="lora_r=16, merge_lora_weights=false: no effect without apply_lora=true"):
        stage.check()


@pytest.mark.parametrize("wanted", ["no_such_module", "query,no_such_module", "query[", " , "])
def test_a_target_that_fits_no_module_is_refused(
    wanted: str, model: Callable[[str], Path], prepared: Callable[[str, str], Path], tmp_path: Path
) -> None:
    base, data = model("bert"), prepared("text_classification", "bert")
    with pytest.raises(UserError, match="lora_target_modules") as refused:
        finetune("text_classification", base, data, tmp_path / "out", lora_target_modules=wanted)
    if "no_such" in wanted:
        assert "bert.encoder.layer.*.attention.self.query" in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wanted", ["query,value", r".*\.self\.(query|value)"])
def test_targets_are_names_or_patterns(
    wanted: str, model: Callable[[str], Path], prepared: Callable[[str, str], Path], tmp_path: Path
) -> None:
    base, data = model("bert"), prepared("text_classification", "bert")
    values = {"lora_target_modules": wanted, "merge_lora_weights": False, "max_steps": 2}
    out = finetune("text_classification", base, data, tmp_path / "out", **values)
    saved = {n for n in load_file(out / "adapter_model.safetensors") if "lora_" in n}
    assert saved and all(".query." in n or ".value." in n for n in saved)
    assert any(".query." in n for n in saved) and any(".value." in n for n in saved)


class SpoilLastEpoch(TrainerCallback):  # type: ignore[misc]
    """Sets all that is trained to zero when the last epoch ends, before it is evaluated."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            with torch.no_grad():
                for weight in kwargs["model"].parameters():
                    if weight.requires_grad:
                        weight.zero_()


def test_the_best_adapter_comes_out(
    model: Callable[[str], Path], prepared: Callable[[str, str], Path], tmp_path: Path
) -> None:
    task, base, data = tasks.load("text_classification"), model("bert"), prepared("text_classification", "bert")
    options = FAST | {"merge_lora_weights": False, "save_total_limit": -1}
    stage: Any = steps.load("finetune", task.name)(model_selector_output=base, preprocess_output=data, **options)
    read, run, metric = Prepared(data), Run(), "loss"
    callbacks = [SpoilLastEpoch()]
    result = train(task, base, read, stage, metric_for_best_model=metric, output=tmp_path, run=run, callbacks=callbacks)
    assert result.best_step < result.steps
    name = "adapter_model.safetensors"
    out, best = load_file(tmp_path / name), load_file(tmp_path / result.best_checkpoint / name)
    assert out.keys() == best.keys() and all(torch.equal(out[n], best[n]) for n in out)
    assert any(weight.abs().sum() > 0 for n, weight in out.items() if "lora_B" in n)


@pytest.mark.parametrize("merge", [True, False])
def test_both_outputs_are_exported_and_evaluated(
    merge: bool, model: Callable[[str], Path], prepared: Callable[[str, str], Path], tmp_path: Path
) -> None:
    task, base, data = "text_classification", model("bert"), prepared("text_classification", "bert")
    tuned = finetune(task, base, data, tmp_path / "tuned", merge_lora_weights=merge, num_train_epochs=8)
    inputs = {"pytorch_model_folder": tuned, "preprocess_output": data, "model_selector_output": base}
    execute(steps.load("model_export", task)(**inputs, mlflow_model_folder=tmp_path / "mlflow"))
    execute(steps.load("model_evaluation", task)(**inputs, evaluation_result=tmp_path / "report"))
    lines = (tmp_path / "report" / "predictions.jsonl").read_text().splitlines()
    scored = [json.loads(line)["tuned"]["label"] for line in lines]
    frame = pd.DataFrame({"text": [json.loads(line)["sentence1"] for line in lines]})
    served = mlflow.pyfunc.load_model(str(tmp_path / "mlflow")).predict(frame)["label"].tolist()
    assert served == scored and len(set(served)) > 1
    assert not list((tmp_path / "mlflow").rglob("adapter_*"))


@pytest.mark.parametrize("merge", [True, False])
def test_later_stages_read_a_tuned_model_that_is_whole(
    merge: bool, model: Callable[[str], Path], prepared: Callable[[str, str], Path], tmp_path: Path
) -> None:
    task, base, data = "text_classification", model("bert"), prepared("text_classification", "bert")
    alone = tmp_path / "alone"
    tuned = finetune(task, base, data, tmp_path / "tuned", merge_lora_weights=merge, tuned_model=alone, max_steps=4)
    verify(Model(alone))
    assert is_adapter(tuned) is not merge and is_adapter(alone) is not merge and not (alone / "checkpoints").exists()
    assert {"training.json", "trainer_state.json", "tracking.json", "tokenizer.json"} < {
        f.name for f in alone.iterdir()
    }
    assert (alone / "README.md").read_text("utf-8") == (tuned / "README.md").read_text("utf-8")
    expected = load_file(tuned / "model.safetensors") if merge else load_merged(tuned, base).state_dict()
    found = tasks.load(task).load_model(alone, Prepared(data).info.meta).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected) and len(expected) > 10
    exported = tmp_path / "mlflow"
    inputs = {"pytorch_model_folder": alone, "preprocess_output": data}
    execute(steps.load("model_export", task)(**inputs, mlflow_model_folder=exported))
    assert read_manifest(MLflowModel(exported))["inputs"].keys() == {"preprocess_output", "pytorch_model_folder"}
    assert ("peft==" in (exported / "requirements.txt").read_text("utf-8")) is not merge
    execute(
        steps.load("model_evaluation", task)(
            **inputs, model_selector_output=base, evaluation_result=tmp_path / "report"
        )
    )
    rows = [json.loads(line) for line in (tmp_path / "report" / "predictions.jsonl").read_text().splitlines()]
    served = mlflow.pyfunc.load_model(str(exported)).predict(pd.DataFrame({"text": [r["sentence1"] for r in rows]}))
    assert served["label"].tolist() == [row["tuned"]["label"] for row in rows]
    assert served["score"].tolist() == pytest.approx([row["tuned"]["score"] for row in rows], rel=1e-6)


@pytest.mark.parametrize("given", ["pytorch_model_path", "mlflow_model_path"])
def test_training_goes_on_from_an_adapter_that_its_base_model_lies_beside(
    given: str, model: Callable[[str], Path], prepared: Callable[[str, str], Path], tmp_path: Path
) -> None:
    task, base, data = "text_classification", model("bert"), prepared("text_classification", "bert")
    alone, exported = tmp_path / "alone", tmp_path / "mlflow"
    finetune(task, base, data, tmp_path / "tuned", merge_lora_weights=False, tuned_model=alone, max_steps=4)
    expected = load_merged(tmp_path / "tuned", base).state_dict()
    inputs = {"pytorch_model_folder": alone, "preprocess_output": data, "mlflow_model_folder": exported}
    execute(steps.load("model_export", task)(**inputs))
    moved = tmp_path / "elsewhere" / "down" / "here"
    shutil.copytree(alone if given == "pytorch_model_path" else exported, moved)
    execute(steps.load("model_import")(**{given: moved}, model_selector_output=tmp_path / "on"))
    taken = load_file(tmp_path / "on" / "model.safetensors")
    assert all(torch.equal(expected[name], taken[name]) for name in taken) and len(taken) > 10
    assert not list((tmp_path / "on").glob("adapter_*")) and not (tmp_path / "on" / "base_model").exists()


def test_an_adapter_is_not_exported_without_its_base_model_nor_with_another(
    model: Callable[[str], Path], prepared: Callable[[str, str], Path], tmp_path: Path
) -> None:
    task, base, data = "text_classification", model("bert"), prepared("text_classification", "bert")
    tuned = finetune(task, base, data, tmp_path / "tuned", merge_lora_weights=False, max_steps=2)
    export = steps.load("model_export", task)
    inputs = {"pytorch_model_folder": tuned, "preprocess_output": data, "mlflow_model_folder": tmp_path / "mlflow"}
    with pytest.raises(UserError, match="holds a LoRA adapter; expected its base model, too"):
        execute(export(**inputs))
    with pytest.raises(UserError, match="is not the base model that the adapter"):
        execute(export(**inputs, model_selector_output=model("llama")))


@pytest.mark.parametrize("route", ["where it says", "moved", "a checkpoint"])
def test_training_goes_on_from_an_adapter(
    route: str, model: Callable[[str], Path], prepared: Callable[[str, str], Path], tmp_path: Path
) -> None:
    task, base, data = "text_classification", model("bert"), prepared("text_classification", "bert")
    tuned = finetune(task, base, data, tmp_path / "tuned", merge_lora_weights=False)
    values: dict[str, Any] = {"pytorch_model_path": tuned, "model_selector_output": tmp_path / "on"}
    if route == "a checkpoint":
        values["pytorch_model_path"] = tuned / json.loads((tuned / "training.json").read_text())["best_checkpoint"]
    if route == "moved":
        moved = tmp_path / "elsewhere" / "down" / "here"
        shutil.copytree(tuned, moved)
        values["pytorch_model_path"] = moved
        with pytest.raises(UserError, match="Set base_model_path"):
            execute(steps.load("model_import")(**values))
        with pytest.raises(UserError, match="is not the base model that the adapter"):
            execute(steps.load("model_import")(**values, base_model_path=model("llama")))
        values["base_model_path"] = base
    execute(steps.load("model_import")(**values))
    expected = load_merged(tuned, base).state_dict()
    taken = load_file(tmp_path / "on" / "model.safetensors")
    assert all(torch.equal(expected[name], taken[name]) for name in taken) and len(taken) > 10
    assert {f.name for f in (tmp_path / "on").iterdir()} >= {"config.json", "tokenizer.json", "manifest.json"}
    assert not list((tmp_path / "on").glob("adapter_*"))


def test_an_adapter_of_another_architecture_or_width_is_refused_and_both_are_named(
    model: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As other programs write adapters, without a manifest that tells the base model by its digest."""
    base, adapter = model("llama"), tmp_path / "adapter"
    network = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(network, peft.LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(adapter)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter)
    wide = tmp_path / "wide"
    shutil.copytree(base, wide, ignore=shutil.ignore_patterns("manifest.json"))
    config = transformers.AutoConfig.from_pretrained(base)
    config.hidden_size = 64
    transformers.LlamaForCausalLM(config).save_pretrained(wide)
    values = {"pytorch_model_path": adapter, "model_selector_output": tmp_path / "out"}
    for other, reason in (
        (model("bert"), r"The files hold \d+ others instead"),
        (wide, r"\(is \[64\], expected \[32\]\)"),
    ):
        with pytest.raises(UserError, match=rf"^{re.escape(str(other))}: .*{reason}"):
            execute(steps.load("model_import")(**values, base_model_path=other))
        assert not (tmp_path / "out").exists()
    assert capfd.readouterr().out == ""
    execute(steps.load("model_import")(**values, base_model_path=base))
    assert torch.equal(
        load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"],
        load_file(base / "model.safetensors")["model.embed_tokens.weight"],
    )


@pytest.mark.parametrize("route", ["where it says", "named"])
def test_an_adapter_as_peft_writes_it_is_imported_with_the_tokenizer_of_its_base(
    route: str, model: Callable[[str], Path], tmp_path: Path
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(model("llama"), base)
    network = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(network, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    adapted.save_pretrained(adapter)
    assert not (adapter / "config.json").exists() and not (adapter / "tokenizer.json").exists()
    values = {"pytorch_model_path": adapter, "model_selector_output": tmp_path / "out"}
    if route == "named":
        base = Path(shutil.move(base, tmp_path / "elsewhere"))
        with pytest.raises(UserError, match="Set base_model_path"):
            steps.load("model_import")(**values).check_files()
        values["base_model_path"] = base
    execute(steps.load("model_import")(**values))
    merged = adapted.merge_and_unload().state_dict()
    taken = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.allclose(taken[name], merged[name], atol=1e-6) for name in taken)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(taken[name], load_file(base / "model.safetensors")[name])
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_a_classifiers_adapter_without_its_models_config_is_refused_with_what_to_add(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model("bert"))
    peft.get_peft_model(network, peft.LoraConfig(r=2, task_type="SEQ_CLS")).save_pretrained(tmp_path / "adapter")
    values = {"pytorch_model_path": tmp_path / "adapter", "base_model_path": model("bert")}
    with pytest.raises(UserError, match=r"task_type SEQ_CLS\) comes without config.json"):
        execute(steps.load("model_import")(**values, model_selector_output=tmp_path / "out"))


def test_a_base_model_without_an_adapter_is_refused(model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has an effect only where pytorch_model_path holds a LoRA adapter"):
        steps.load("model_import")(pytorch_model_path=model("bert"), base_model_path=model("bert")).check_files()


def test_an_adapter_of_a_hub_model_names_it_and_its_commit(
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    root, commit, task = tmp_path / "hub" / "models--acme--one", "1" * 40, "text_classification"
    shutil.copytree(tiny_model, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    base, data = tmp_path / "base", write_jsonl(tmp_path / "rows.jsonl", questions)
    execute(steps.load("model_import")(huggingface_id="acme/one", model_selector_output=base))
    inputs = {"model_selector_output": base, "train_file_path": data, "preprocess_output": tmp_path / "prepared"}
    execute(steps.load("preprocess", task)(**inputs, sentence1_key="text", label_key="label"))
    tuned = finetune(task, base, tmp_path / "prepared", tmp_path / "tuned", merge_lora_weights=False, max_steps=3)
    config = json.loads((tuned / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("acme/one", commit)
    expected = load_merged(tuned, base).state_dict()
    shutil.rmtree(base)
    execute(steps.load("model_import")(pytorch_model_path=tuned, model_selector_output=tmp_path / "on"))
    taken = load_file(tmp_path / "on" / "model.safetensors")
    assert all(torch.equal(expected[name], taken[name]) for name in taken)


@pytest.mark.parametrize("variant", ["use_rslora", "use_dora"])
def test_a_variant_of_lora_is_merged_as_it_was_trained(
    variant: str, model: Callable[[str], Path], prepared: Callable[[str, str], Path], tmp_path: Path
) -> None:
    task, base, data = "text_classification", model("bert"), prepared("text_classification", "bert")
    values = {variant: True, "max_steps": 8, "precision": "32"}
    merged = load_file(finetune(task, base, data, tmp_path / "merged", **values) / "model.safetensors")
    adapter = finetune(task, base, data, tmp_path / "adapter", **values, merge_lora_weights=False)
    loaded = load_merged(adapter, base).state_dict()
    assert all(torch.allclose(merged[name], loaded[name], atol=1e-6) for name in merged)
    plain = load_file(finetune(task, base, data, tmp_path / "plain", max_steps=8) / "model.safetensors")
    assert any(not torch.allclose(merged[name], plain[name], atol=1e-4) for name in merged)


def test_the_share_of_trained_weights_is_shown_and_no_file_names_a_path_of_this_machine(
    model: Callable[[str], Path],
    prepared: Callable[[str, str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "tuneport")
    base, data = model("bert"), prepared("text_classification", "bert")
    out = finetune("text_classification", base, data, tmp_path / "out", merge_lora_weights=False, max_steps=2)
    assert "M trained, " in caplog.text and "in full: classifier" in caplog.text
    for file in [*out.rglob("*.json"), *out.rglob("*.md")]:
        if file != out / "manifest.json":
            assert str(base) not in file.read_text() and str(tmp_path) not in file.read_text(), file
