"""What a cluster offers and how a pipeline uses it: the section ``platform: kfp:`` of a configuration."""

from __future__ import annotations

import re
import typing as t
from pathlib import PurePosixPath

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tuneport.launchers.job import TMP_SIZE

DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")


def _matches(pattern: str, wanted: str, length: int = 253) -> AfterValidator:
    """A check of text against a pattern, with a message in words."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value) or len(value) > length:
            raise ValueError(f"expected {wanted}")
        return value

    return AfterValidator(check)


def _mount(value: str) -> str:
    path = PurePosixPath(value)
    if not path.is_absolute() or path == PurePosixPath("/") or ".." in path.parts or ":" in value:
        raise ValueError("expected an absolute path below /, as in /mnt/data")
    return str(path)


LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
LABEL_KEY = rf"({LABEL}(\.{LABEL})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
IMAGE = (
    rf"([a-zA-Z0-9][-a-zA-Z0-9.]*(:\d{{1,5}})?/)?{LABEL.replace('-a-z0-9', '-._a-z0-9')}"
    r"(/[a-z0-9]([-._a-z0-9]*[a-z0-9])?)*(:[A-Za-z0-9_][-.A-Za-z0-9_]{0,127})?(@sha256:[0-9a-f]{64})?"
)
Name = t.Annotated[
    str, _matches(rf"{LABEL}(\.{LABEL})*", "the name of a Kubernetes object: a-z, 0-9, '-' and '.', as in my-volume")
]
Label = t.Annotated[
    str, _matches(r"[a-z]([-a-z0-9]*[a-z0-9])?", "a DNS-1035 name: a-z, 0-9 and '-', at most 63, a letter first", 63)
]
LabelKey = t.Annotated[str, _matches(LABEL_KEY, "a label's key, as in node.kubernetes.io/instance-type", 317)]
LabelValue = t.Annotated[
    str, _matches(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?", "a label's value: letters, digits, '-', '_', '.'", 63)
]
Cpu = t.Annotated[str, _matches(r"[1-9]\d*m|(\d+\.)?\d+", "a number of CPUs, as in 4, 0.5 or 500m")]
Memory = t.Annotated[str, _matches(r"[1-9]\d*([KMGTPE]i?)?", "an amount of memory, as in 16Gi or 500M")]
Duration = t.Annotated[str, _matches(r"\d+[smh]", "a time, as in 30s, 5m or 1h")]
Image = t.Annotated[str, _matches(IMAGE, "an image reference, as in registry.example/team/image@sha256:…", 512)]
Accelerator = t.Annotated[
    str,
    _matches(rf"{LABEL}(\.{LABEL})+/[A-Za-z0-9][-A-Za-z0-9_.]*", "a resource that nodes offer, as in nvidia.com/gpu"),
]
Variable = t.Annotated[str, _matches(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")]
Mount = t.Annotated[str, AfterValidator(_mount)]


def seconds(duration: str) -> int:
    """A `Duration` as a number."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


UNITS = {"m": 1e-3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
BINARY = {unit + "i": 1024**power for power, unit in enumerate("KMGTPE", start=1)}


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number."""
    number, unit = t.cast(re.Match[str], re.fullmatch(r"([\d.]+)([A-Za-z]*)", text)).groups()
    factors: dict[str, float] = UNITS | BINARY | {"": 1}
    return float(number) * factors[unit]


class Strict(BaseModel):
    """Settings without unknown names; YAML's numbers are text where text is expected (``cpu_limit: 4``)."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, defer_build=True)


class Toleration(Strict):
    """A taint of nodes that is tolerated."""

    key: LabelKey | None = Field(default=None, description="Key of the taint; none, with operator Exists: every taint.")
    operator: t.Literal["Equal", "Exists"] = Field(
        default="Equal", description="Whether the taint's value has to be equal."
    )
    value: LabelValue | None = Field(default=None, description="Value of the taint.")
    effect: t.Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint; none: every effect."
    )

    @model_validator(mode="after")
    def _consistent(self) -> t.Self:
        if self.operator == "Equal" and self.key is None:
            raise ValueError("expected a key, or operator: Exists")
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("expected no value with operator: Exists")
        return self


class Volume(Strict):
    """A PersistentVolumeClaim that is mounted in every stage; data and models can be named by their path there."""

    claim: Name = Field(description="Name of the claim.")
    path: Mount = Field(description="Where it is mounted, as in /mnt/data.")
    sub_path: str = Field(default="", description="Folder of the volume that is mounted; empty: all of it.")


class Secret(Strict):
    """A Kubernetes Secret whose values stages see: of the object store, a model hub, MLflow."""

    name: Name = Field(description="Name of the Secret.")
    environment: dict[Variable, str] = Field(
        default_factory=dict, description="Environment variables by the Secret's key they are set from."
    )
    path: Mount | None = Field(default=None, description="Folder to mount its values in as files.")

    @model_validator(mode="after")
    def _used(self) -> t.Self:
        if not self.environment and self.path is None:
            raise ValueError("expected environment, path, or both")
        return self


class Retries(Strict):
    """How often a stage that failed is started again."""

    count: int = Field(default=2, ge=0, le=100, description="How often.")
    backoff: Duration = Field(default="30s", description="Time before the first retry.")
    factor: float = Field(default=2.0, ge=1, description="How many times longer each further wait is.")
    longest: Duration = Field(default="10m", description="Longest wait.")


class Identity(Strict):
    """As whom a container runs; Kubeflow itself drops all capabilities and forbids more privileges."""

    run_as_user: int | None = Field(default=None, ge=0, description="User id; unset: the image's.")
    run_as_group: int | None = Field(default=None, ge=0, description="Group id; unset: the image's.")
    run_as_non_root: bool = Field(default=True, description="Refuse to start as root.")


class Resources(Strict):
    """What a stage's container gets and where it runs."""

    cpu_request: Cpu | None = Field(default=None, description="CPUs that are reserved.")
    cpu_limit: Cpu | None = Field(default=None, description="CPUs that it may use.")
    memory_request: Memory | None = Field(default=None, description="Memory that is reserved.")
    memory_limit: Memory | None = Field(default=None, description="Memory beyond which it is killed.")
    accelerator_type: Accelerator | None = Field(
        default=None, description="The resource that stands for an accelerator, as in nvidia.com/gpu; unset: none."
    )
    accelerator_count: int | None = Field(
        default=None,
        ge=1,
        description="Accelerators of a stage without a parameter for it; with accelerator_type, default 1.",
    )
    shm_size: Memory | None = Field(
        default=None, description="Size of /dev/shm, of a stage without a parameter for it; unset: the cluster's."
    )
    tmp_size: Memory | None = Field(
        default=None,
        description=f"Most that it may keep in /tmp; unset: {TMP_SIZE}, and no limit for a stage that fetches a model "
        "or machines that train without a shared volume.",
    )
    node_selector: dict[LabelKey, LabelValue] | None = Field(
        default=None, description="Labels that its node must have."
    )
    tolerations: list[Toleration] | None = Field(default=None, description="Taints of nodes that are tolerated.")
    retries: Retries | None = Field(default=None, description="Retries of a stage that failed.")
    timeout: Duration | None = Field(default=None, description="Time after which the stage is stopped.")
    environment: dict[Variable, str] = Field(default_factory=dict, description="Environment variables.")
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, description="Labels of the pod.")
    annotations: dict[LabelKey, str] = Field(default_factory=dict, description="Annotations of the pod.")

    @model_validator(mode="after")
    def _consistent(self) -> t.Self:
        for amount in ("cpu", "memory"):
            request, limit = getattr(self, f"{amount}_request"), getattr(self, f"{amount}_limit")
            if request and limit and quantity(request) > quantity(limit):
                raise ValueError(f"expected {amount}_request ({request}) up to {amount}_limit ({limit})")
        return self


class Stage(Resources):
    """The same, for one stage: what is set here goes before what is set for all."""

    image: Image | None = Field(default=None, description="Image of this stage, instead of one of images.")


class Images(Strict):
    """The images that stages run in, by digest: a tag may come to mean another image while results are cached."""

    base: Image = Field(description="Image without torch: preprocess, model_registration and model_upload.")
    trainer: Image = Field(description="Image with torch: the other stages.")


class MultiNode(Strict):
    """The job that trains on several machines (num_nodes_finetune above 1)."""

    artifacts: t.Literal["volume", "store"] = Field(
        default="volume",
        description="How its machines get what they read and hand over what they write: on shared_volume, or from and "
        "to the object store of the pipeline, which needs no shared volume.",
    )
    queue: Label | None = Field(default=None, description="Queue of Kueue that admits it; unset: none.")
    priority_class: Name | None = Field(default=None, description="PriorityClass of its pods (PyTorchJob).")
    restarts: int = Field(default=0, ge=0, le=100, description="Restarts of pods that failed (PyTorchJob; elastic: 3).")
    elastic_min_nodes: int | None = Field(
        default=None, ge=1, description="Go on with as few machines as that; unset: all are needed."
    )
    pending_timeout: Duration = Field(
        default="30m", description="Time for its first pod to run, not counting a queue; then it is deleted."
    )
    runtime: Name = Field(default="torch-distributed", description="Runtime of a TrainJob.")
    runtime_kind: t.Literal["ClusterTrainingRuntime", "TrainingRuntime"] = Field(
        default="ClusterTrainingRuntime",
        description="Its kind: of the whole cluster, or of the namespace, as the chart's.",
    )
    when_evicted: t.Literal["delete", "suspend"] = Field(
        default="delete",
        description="What becomes of the job when the pod of the stage is evicted or pre-empted: suspend keeps it, "
        "without pods, for the retry, which resumes it.",
    )
    launcher: Resources = Field(
        default=Resources(cpu_request="250m", memory_request="256Mi", memory_limit="2Gi"),
        description="What the stage's own pod gets, which follows the job, and on a shared volume copies artifacts.",
    )


class Settings(Resources):
    """How pipelines run on Kubeflow Pipelines."""

    images: Images = Field(description="Images of the stages.")
    allow_image_tags: bool = Field(default=False, description="Take images without a digest, too.")
    image_pull_policy: t.Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="When images are pulled; unset: the cluster's rule."
    )
    image_pull_secrets: list[Name] = Field(default_factory=list, description="Secrets to pull the images with.")
    security: Identity = Field(default_factory=Identity, description="As whom containers run.")
    reimport: bool = Field(
        default=False,
        description="Import data and models again in each run, though Kubeflow knows their address: a recurring run "
        "then sees what has changed behind it.",
    )
    volumes: list[Volume] = Field(default_factory=list, description="Volumes that every stage sees.")
    secrets: list[Secret] = Field(default_factory=list, description="Secrets that every stage sees.")
    artifacts: t.Literal["kubeflow", "store"] = Field(
        default="kubeflow",
        description="Who brings what holds a model from and to the object store of the pipeline: kubeflow, all of it, "
        "before and after each stage; or store: finetune, model_export and model_evaluation do so themselves, read "
        "what they need, and let the store copy what stands there already. With store, and without a shared_volume, "
        "several machines do, too.",
    )
    kubeflow_job: t.Literal["pytorchjob", "trainjob"] = Field(
        default="pytorchjob", description="What trains on several machines: training operator v1, or Trainer v2."
    )
    shared_volume: Volume | None = Field(
        default=None, description="Volume that several machines can write to (ReadWriteMany); they train on it."
    )
    multi_node: MultiNode = Field(default_factory=MultiNode, description="The job on several machines.")
    tracking_uri: str | None = Field(default=None, description="MLflow server that stages track to; unset: none.")
    experiment: str | None = Field(
        default=None, description="MLflow and Kubeflow experiment; unset: the pipeline's name."
    )
    stages: dict[str, Stage] = Field(default_factory=dict, description="By stage: what differs there.")
    endpoint: str | None = Field(
        default=None,
        description="URL of the Kubeflow Pipelines API; unset: that of the cluster this runs in, or kfp's own default.",
    )
    ca_certificate: str | None = Field(
        default=None, description="File with the certificate of the authority that signed the endpoint's."
    )
    namespace: Name | None = Field(default=None, description="Namespace, or profile, of the runs.")
    service_account: Name | None = Field(
        default=None, description="Service account of the runs; unset: the cluster's default."
    )

    @model_validator(mode="after")
    def _pinned(self) -> t.Self:
        named = {"images.base": self.images.base, "images.trainer": self.images.trainer}
        named |= {f"stages.{name}.image": stage.image for name, stage in self.stages.items() if stage.image}
        if loose := [f"{n}={i}" for n, i in named.items() if not DIGEST.search(i) and not self.allow_image_tags]:
            raise ValueError(
                f"expected images by digest (…@sha256:…), or allow_image_tags: true; got {', '.join(loose)}"
            )
        paths = [v.path for v in (*self.volumes, self.shared_volume) if v] + [s.path for s in self.secrets if s.path]
        if twice := sorted({p for p in paths if paths.count(p) > 1}):
            raise ValueError(f"expected each mount path once; got {', '.join(twice)} twice")
        return self

    def by_store(self, is_job: bool) -> bool:
        """Whether stages bring artifacts from and to the store themselves; ``is_job``: those on several machines."""
        if self.artifacts == "store" and not (is_job and self.shared_volume):
            return True
        return is_job and self.multi_node.artifacts == "store"

    def stage(self, name: str) -> Resources:
        """What holds for one stage."""
        own = self.stages.get(name, Stage())
        merged = {field: getattr(self, field) for field in Resources.model_fields}
        for field in own.model_fields_set & set(merged):
            value = getattr(own, field)
            merged[field] = merged[field] | value if field in ("environment", "labels", "annotations") else value
        return Resources(**merged)

    def image(self, step: str, kind: str) -> str:
        """The image of a stage."""
        own = self.stages.get(step, Stage()).image
        return own or t.cast(str, getattr(self.images, kind))
