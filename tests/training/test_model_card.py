"""The model card: what the hub reads of it, and what a person does."""

from pathlib import Path

from huggingface_hub import ModelCard

import steps
from tuneport.stage import execute


def test_a_tuned_model_has_a_card_with_its_base_scores_data_and_parameters(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    execute(
        steps.load("finetune", "text_classification")(
            model_selector_output=imported_model,
            preprocess_output=prepared_questions,
            pytorch_model_folder=tmp_path / "tuned",
            learning_rate=0.01,
            max_steps=2,
            per_device_train_batch_size=8,
        )
    )
    card = ModelCard.load(tmp_path / "tuned" / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-classification", "transformers")
    assert card.data.base_model is None
    assert "bert-" in card.text and "fine-tuned for text classification" in card.text
    assert "| Accuracy | 0." in card.text and "96 train rows, 12 validation rows, 12 test rows" in card.text
    assert "| `learning_rate` | `0.01` |" in card.text and "weight_decay" not in card.text
    assert "Labels: animal, colour, number." in card.text


def test_a_name_with_markup_is_text(tmp_path: Path) -> None:
    """What the data's file is called reaches the card as it is, and changes none of its settings."""
    from tuneport import tasks
    from tuneport.training.model_card import write_model_card

    summary = '{"best_step": 1, "steps": 1, "metric_for_best_model": "loss"}'
    (tmp_path / "training.json").write_text(summary)
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 1, "eval_loss": 0.5}]}')
    write_model_card(
        tmp_path,
        tasks.load("summarization"),
        base="acme/t5",
        on_hub=True,
        data="a\n---\nlicense: mit {{ 1 + 1 }}.csv",
        splits={"train": 3, "test": 0},
        meta={},
        parameters={"prompt_template": "a | b\n{text}"},
        version="1",
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.license) == ("acme/t5", None)
    assert "{{ 1 + 1 }}" in card.text and "3 train rows." in card.text
    assert "| `prompt_template` | `a ¦ b {text}` |" in card.text
