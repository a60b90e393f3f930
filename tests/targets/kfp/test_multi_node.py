"""What a job on several machines wrote, brought back: each byte once, also what two outputs share."""

from pathlib import Path

from tuneport.artifacts import Model, write_manifest
from tuneport.links import link_tree
from tuneport.targets.kfp import multi_node


def test_what_two_outputs_share_is_copied_once_and_linked_again(tmp_path: Path) -> None:
    job, first = tmp_path / "job", tmp_path / "job" / "out" / "pytorch_model_folder"
    first.mkdir(parents=True)
    (first / "model.safetensors").write_bytes(bytes(2 << 20))
    (first / "config.json").write_text("{}")
    second = job / "out" / "tuned_model"
    link_tree(first, second)
    for folder in (first, second):
        write_manifest(Model(folder), "finetune", "1", {}, {})
    outputs = {name: Model(tmp_path / "kfp" / name) for name in ("pytorch_model_folder", "tuned_model")}
    multi_node._stage_out(job, outputs)
    large = [artifact.path / "model.safetensors" for artifact in outputs.values()]
    assert large[0].samefile(large[1]) and large[0].stat().st_size == 2 << 20
    assert all((artifact.path / "manifest.json").is_file() for artifact in outputs.values())
    assert not job.exists()
