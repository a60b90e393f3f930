"""A classifier of texts by transformers' Trainer, as many write it, which `demo_speed.py` holds the demo against.

`python sentence_classifier.py CONFIG ROWS OUTPUT longest|maximum SEED`: ROWS holds train.jsonl, validation.jsonl and
test.jsonl with `text` and `label`. It uses nothing of tuneport but the demo's configuration file, for the model and the
hyperparameters. Prints the accuracy on the test rows as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import transformers
import yaml
from datasets import ClassLabel, load_dataset

SPLITS = ("train", "validation", "test")
SHARED = (
    "num_train_epochs",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "logging_steps",
    "save_total_limit",
    "metric_for_best_model",
)


def main(config: Path, rows: str, output: str, padding: str, seed: int) -> None:
    """Train, keep the best epoch, and test it."""
    transformers.set_seed(seed)
    values = yaml.safe_load(config.read_text("utf-8"))
    data = load_dataset("json", data_files={split: f"{rows}/{split}.jsonl" for split in SPLITS})
    names = sorted(set(data["train"]["label"]))
    data = data.cast_column("label", ClassLabel(names=names))
    model_name = str(config.parent / values["pytorch_model_path"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_name)

    def encode(batch: Any) -> Any:
        to_maximum = "max_length" if padding == "maximum" else False
        return tokenizer(batch["text"], truncation=True, max_length=values["max_seq_length"], padding=to_maximum)

    data = data.map(encode, batched=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=len(names))
    arguments = transformers.TrainingArguments(
        output_dir=output,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
        **{name: values[name] for name in SHARED},
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
    )
    trainer.train()
    trainer.save_model(f"{output}/best")
    print(json.dumps({"accuracy": trainer.evaluate(data["test"])["eval_accuracy"]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5]))
