"""Stage `model_upload`: put the tuned model, with its card, on Hugging Face's hub."""

import dataclasses as dc

from tuneport import __version__
from tuneport.artifacts import Model, Registration
from tuneport.parameters import COMPUTE, INSTANCE_TYPE
from tuneport.stage import save_json
from tuneport.step import Step, consumes, param, produces, resource


class ModelUpload(Step):
    """Upload the tuned model and its card to Hugging Face's hub, as one commit."""

    cacheable = False
    network = True
    only_if = "hub_model_id"

    pytorch_model_folder: Model = consumes("Tuned model, with its checkpoints, which stay here, or without.")
    hub_model_id: str | None = param(
        "Model on the hub to upload to, NAME or ORGANISATION/NAME; it is made if it is not there. The token is that of "
        "HF_TOKEN or `hf auth login`, the hub that of HF_ENDPOINT. Empty: no upload.",
        default=None,
    )
    hub_private_repo: bool = param("Make a new repository private; one that is there stays as it is.", default=True)
    hub_upload_folder: Registration = produces("Name, commit and address of the model on the hub.")
    compute_model_upload: str = resource("compute", COMPUTE.format("model_upload"), default="serverless")
    instance_type_model_upload: str = resource(
        "instance_type", INSTANCE_TYPE.format("model_upload"), default="Standard_d12_v2"
    )

    def check(self) -> None:
        from tuneport.export import hub_upload

        hub_upload.check_id(self.hub_model_id or "")

    def check_here(self) -> None:
        from tuneport.export import hub_upload

        hub_upload.check_access(self.hub_model_id or "")

    def run(self) -> None:
        from tuneport.export import hub_upload

        done = hub_upload.upload(
            self.pytorch_model_folder.path,
            self.hub_model_id or "",
            private=self.hub_private_repo,
            message=f"Upload a model tuned with tuneport {__version__}",
        )
        save_json(self.hub_upload_folder.path / "hub_upload.json", dc.asdict(done))
        if done.deleted:
            self.log.warning("%d files of another model were deleted: %s", len(done.deleted), ", ".join(done.deleted))
        if done.is_new:
            self.log.info("uploaded %d files to %s, commit %s", len(done.files), done.url, done.commit)
        else:
            self.log.info("%s has all %d files already, commit %s", done.url, len(done.files), done.commit)
