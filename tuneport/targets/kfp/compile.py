"""From a traced pipeline to KFP's document, by kfp's own DSL; reads and sends nothing."""

from __future__ import annotations

import dataclasses as dc
import inspect
import json
import re
import typing as t
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from tuneport.errors import UserError, did_you_mean
from tuneport.graph import Node, Pipeline, Ref
from tuneport.launchers import job
from tuneport.mixture import parts
from tuneport.step import REQUIRED, Port, Resource, Step, show
from tuneport.targets.kfp import multi_node
from tuneport.targets.kfp.executor import ARTIFACTS_FLAG, BY_STORE, FLAG, JOB_FLAG, LOCATION, RUN_FLAG
from tuneport.targets.kfp.settings import Resources, Retries, Settings, Toleration, seconds
from tuneport.targets.kfp.sources import Source, sources

if t.TYPE_CHECKING:
    from kfp.dsl import PipelineTask

CLASSES = {  # kfp's class for an artifact of ours
    "Model": "Model",
    "MLflowModel": "Model",
    "LoggedModel": "Artifact",
    "CustomModel": "Model",
    "CustomMLflowModel": "Model",
    "Tokenizer": "Artifact",
    "Dataset": "Dataset",
    "File": "Dataset",
    "Folder": "Dataset",
    "MLTable": "Dataset",
    "Report": "Artifact",
    "Predictions": "Dataset",
    "Registration": "Artifact",
}
VIEWS = {"metrics": "Metrics", "confusion_matrix": "ClassificationMetrics", "markdown": "Markdown", "html": "HTML"}
SHM_SIZES = {"b": "", "k": "Ki", "m": "Mi", "g": "Gi"}  # units of shm_size_…, as docker writes them, and Kubernetes'


@dc.dataclass(frozen=True, kw_only=True)
class Plan:
    """A pipeline with its values: what decides which stages there are, what they read and which machines they get."""

    pipeline: Pipeline
    values: Mapping[str, t.Any]
    steps: Mapping[str, Step]  # those that run
    settings: Settings

    @cached_property
    def nodes(self) -> list[Node]:
        return [node for node in self.pipeline.nodes if node.name in self.steps]

    @cached_property
    def sources(self) -> dict[str, Source]:
        """By the pipeline's input: where the user's data or model lies."""
        return sources(self.pipeline, self.nodes, self.values, self.settings.volumes)

    @cached_property
    def parameters(self) -> dict[str, Port]:
        """The runtime parameters of the KFP pipeline, by name: locations, and values that choose no hardware."""
        read = {v.port for n in self.nodes for v in n.values.values() if isinstance(v, Ref) and v.node is None}
        return {
            name: port
            for name, port in self.pipeline.params.items()
            if name in self.sources or (name in read and port.kind == "param" and not port.resource)
        }

    def wired(self, node: Node) -> dict[str, Ref]:
        """The inputs and parameters of a stage that KFP hands over, each with what it comes from."""
        ports = node.step.ports()
        return {
            name: self._source(node, name, value)
            for name, value in node.values.items()
            if isinstance(value, Ref)
            and (value.node is not None or value.port in self.parameters or ports[name].kind == "input")
        }

    def _source(self, node: Node, name: str, ref: Ref) -> Ref:
        """What an input comes from: of a stage that leaves in the store what it does not read, the folder with more."""
        prefers = ref.node is not None and name in node.step.prefers_own_name and self.by_address(node)
        return Ref(ref.node, name) if prefers else ref

    def settled(self, node: Node) -> dict[str, str]:
        """The parameters of a stage that are part of its command."""
        step, wired = self.steps[node.name], self.wired(node)
        ports = [p for p in node.step.ports().values() if p.kind == "param" and p.name not in wired]
        return {p.name: _text(getattr(step, p.name)) for p in ports if getattr(step, p.name) is not None}

    def asked(self, node: Node, kind: Resource) -> t.Any:
        """What a stage asks of its machine; None where it has no such port."""
        ports = [p for p in node.step.ports().values() if p.resource == kind]
        return getattr(self.steps[node.name], ports[0].name) if ports else None

    def is_job(self, node: Node) -> bool:
        """Whether a stage runs on several machines, as a job that its own container launches."""
        return (self.asked(node, "nodes") or 1) > 1

    def by_address(self, node: Node) -> bool:
        """Whether a stage reads and writes artifacts by their address."""
        job = self.is_job(node)
        return (job or node.step.addressable) and self.settings.by_store(job)

    def takes_address(self, node: Node, name: str) -> bool:
        """Whether a stage is handed the address of an input: one of a job, and one of which it may leave files there.

        Any other input stays an artifact, which Kubeflow's lineage graph has an edge for.
        """
        return self.by_address(node) and (self.is_job(node) or name in node.step.may_leave)

    @cached_property
    def told(self) -> set[Ref]:
        """The outputs whose address their stage says as a parameter.

        Kubeflow fetches every artifact that a stage takes, whole, before its container starts. So a stage that only
        hands an address on takes that alone.
        """
        return {
            ref
            for node in self.nodes
            for name, ref in self.wired(node).items()
            if ref.node is not None and self.takes_address(node, name)
        }

    def is_located(self, node: Node, ref: Ref) -> bool:
        """Whether a stage is told where the user's data or model lies, instead of being handed what KFP imported."""
        source = self.sources.get(ref.port) if ref.node is None else None
        if source is None or not source.imported:
            return source is not None
        copied = any(node.values.get(name) == ref for name in node.step.copies) and source.is_stored
        return self.by_address(node) and (self.is_job(node) or copied)

    def is_imported(self, name: str) -> bool:
        """Whether KFP imports an input of the pipeline: a stage is handed it."""
        readers = [(node, ref) for node in self.nodes for ref in self.wired(node).values()]
        return any(ref == Ref(None, name) and not self.is_located(node, ref) for node, ref in readers) and (
            self.sources[name].imported
        )


def compile_pipeline(
    pipeline: Pipeline, values: Mapping[str, t.Any], steps: Mapping[str, Step], settings: Settings
) -> str:
    """The document as YAML; the values become the defaults of its parameters.

    Raises `UserError` for data that a cluster cannot reach and for settings of a stage that there is not.
    """
    plan = Plan(pipeline=pipeline, values=values, steps=steps, settings=settings)
    _check_stages(plan)
    _ = plan.sources  # what is wrong with them is said before kfp is imported
    import yaml
    from google.protobuf.json_format import MessageToDict
    from kfp import dsl

    compiled = dsl.pipeline(name=pipeline.name.replace("_", "-"), display_name=pipeline.name)(_graph(plan))
    documents = [MessageToDict(message) for message in (compiled.pipeline_spec, compiled.platform_spec)]
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # kfp's own writer takes as long as all the rest
    text: str = yaml.dump_all(documents, Dumper=dumper, sort_keys=True, width=120, allow_unicode=True)
    return text


def _check_stages(plan: Plan) -> None:
    names = [node.name for node in plan.pipeline.nodes]
    problems = [
        f"platform.kfp.stages.{name}: unknown stage; there are: {', '.join(names)}.{did_you_mean(name, names)}"
        for name in plan.settings.stages
        if name not in names
    ]
    for node in plan.nodes:
        own = plan.settings.stage(node.name)
        for kind, field in (("processes", "accelerator_count"), ("shm_size", "shm_size")):
            ports = [p.name for p in node.step.ports().values() if p.resource == kind]
            if ports and getattr(own, field) is not None:
                problems.append(f"platform.kfp: {field} of {node.name} is given by {ports[0]}. Leave it out there.")
        if plan.is_job(node):
            problems += _job_problems(plan, node)
    if problems:
        raise UserError("\n".join(problems))


# -- the graph ---------------------------------------------------------------------------------------------------------


def _graph(plan: Plan) -> Callable[..., t.Any]:
    """The pipeline as a function that kfp's compiler calls."""
    outputs = {name: ref for name, ref in plan.pipeline.outputs.items() if ref.node in plan.steps}
    ports = {Ref(n.name, p.name): p for n in plan.nodes for p in n.step.ports().values()}
    make: t.Any = t.NamedTuple  # to a type checker, no function
    returned = make("Outputs", [(name, _class(CLASSES[ports[ref].type.__name__])) for name, ref in outputs.items()])

    def build(*channels: t.Any) -> t.Any:
        given = dict(zip(plan.parameters, channels, strict=True))
        imported = {name: _import(plan, name, given[name]) for name in plan.sources if plan.is_imported(name)}
        tasks: dict[str, PipelineTask] = {}
        for node in plan.nodes:
            arguments: dict[str, t.Any] = {}
            for name, ref in plan.wired(node).items():
                if ref.node is not None and plan.takes_address(node, name):
                    arguments[name + LOCATION] = tasks[ref.node].outputs[ref.port + LOCATION]
                elif ref.node is not None:
                    arguments[name] = tasks[ref.node].outputs[ref.port]
                elif plan.is_located(node, ref):
                    arguments[name + LOCATION] = given[ref.port]
                elif ref.port in imported:
                    arguments[name] = imported[ref.port].output
                elif ref.port in given:
                    arguments[name] = given[ref.port]
            tasks[node.name] = _component(plan, node)(**arguments)
            _configure(tasks[node.name], plan, node)
        return returned(**{name: tasks[str(ref.node)].outputs[ref.port] for name, ref in outputs.items()})

    arguments = [_parameter(port, plan.values[name], port.kind == "input") for name, port in plan.parameters.items()]
    return _function(build, plan.pipeline.name, plan.pipeline.doc, arguments, returned)


def _import(plan: Plan, name: str, uri: t.Any) -> PipelineTask:
    from kfp import dsl

    kind = plan.pipeline.params[name].type.__name__
    again = plan.settings.reimport
    task = dsl.importer(artifact_uri=uri, artifact_class=_class(CLASSES[kind]), reimport=again)
    return task.set_caching_options(not again).set_display_name(f"import {name}")


def _component(plan: Plan, node: Node) -> Callable[..., PipelineTask]:
    """A stage as a container component: its ports are the interface, the whole executor input is its argument."""
    from kfp import dsl

    step, ports = node.step, node.step.ports()
    arguments = []
    for name, ref in plan.wired(node).items():
        port = ports[name]
        if port.kind == "input":
            kind = dsl.Input[_class(CLASSES[port.type.__name__])]
            located = plan.is_located(node, ref)  # the location stands for the artifact
            if ref.node is not None and plan.takes_address(node, name):
                arguments.append(Argument(name + LOCATION, str, f"Address of {name}, which is read there."))
                continue
            arguments.append(Argument(name, kind, port.help, None if port.optional or located else REQUIRED))
            if located:
                arguments.append(
                    Argument(name + LOCATION, str, f"Path or https URI of {name}, instead of an artifact.")
                )
        else:
            arguments.append(_parameter(port, port.default))
    for port in ports.values():
        if port.kind == "output":
            arguments.append(Argument(port.name, dsl.Output[_class(CLASSES[port.type.__name__])], port.help))
            arguments += [
                Argument(name, dsl.Output[_class(VIEWS[view.kind])], f"{view.file} of {port.name}, for the UI.")
                for name, view in port.views.items()
            ]
            if Ref(node.name, port.name) in plan.told:
                arguments.append(Argument(port.name + LOCATION, dsl.OutputPath(str), f"Address of {port.name}."))
    flags: list[t.Any] = [text for name, value in plan.settled(node).items() for text in (f"--{name}", value)]
    if plan.is_job(node):
        flags += [JOB_FLAG, json.dumps(_job(plan, node)), RUN_FLAG, dsl.PIPELINE_JOB_ID_PLACEHOLDER]
    elif plan.by_address(node):
        flags += [ARTIFACTS_FLAG, BY_STORE]
    package = step.__module__.partition(".")[0]
    container = dsl.ContainerSpec(
        image=plan.settings.image(node.name, step.image),
        command=["python3", "-P", "-m", package, node.name],
        args=[*flags, FLAG, dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
    component = dsl.container_component(_function(lambda *_: container, node.name, step.description(), arguments))
    for argument in arguments:
        if argument.name in (component.component_spec.outputs or {}):
            component.component_spec.outputs[argument.name].description = argument.help
    return t.cast("Callable[..., PipelineTask]", component)


# -- what a stage's container gets -------------------------------------------------------------------------------------


def _configure(task: PipelineTask, plan: Plan, node: Node) -> None:
    found = plan.settings.stage(node.name)
    task.set_caching_options(plan.steps[node.name].repeatable())
    retries = found.retries or Retries()
    if retries.count:
        task.set_retry(retries.count, retries.backoff, retries.factor, retries.longest)
    task.container_spec.env = {**_environment(plan, node), **found.environment}
    if plan.is_job(node):
        from kfp import kubernetes

        own, shared = plan.settings.multi_node.launcher, plan.settings.shared_volume
        both = {name: {**getattr(found, name), **getattr(own, name)} for name in ("labels", "annotations")}
        launcher = own.model_copy(update=both)
        _set_resources(task, launcher, 1)
        _set_pod(task, launcher, plan.settings)
        _bound_tmp(task, plan, launcher.tmp_size or job.TMP_SIZE)
        if not plan.by_address(node) and shared is not None:
            kubernetes.mount_pvc(task, pvc_name=shared.claim, mount_path=shared.path, sub_path=shared.sub_path)
        return
    _set_resources(task, found, plan.asked(node, "processes"))
    _set_pod(task, found, plan.settings)
    _bound_tmp(task, plan, found.tmp_size or (None if node.step.network or plan.by_address(node) else job.TMP_SIZE))
    if shm := found.shm_size or _shm_size(plan, node):
        from kfp import kubernetes

        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=shm)  # noqa: S108


def _set_resources(task: PipelineTask, found: Resources, processes: int | None) -> None:
    """Set what the task's own setters would, each of which takes as long as compiling a stage."""
    from kfp.dsl.structures import ResourceSpec

    names = ("cpu_request", "cpu_limit", "memory_request", "memory_limit")
    amounts = {name: value for name in names if (value := getattr(found, name))}
    if found.accelerator_type:
        amounts["accelerator_type"] = found.accelerator_type
        amounts["accelerator_count"] = str(processes or found.accelerator_count or 1)
    if amounts:
        task.container_spec.resources = ResourceSpec(**amounts)


def _set_pod(task: PipelineTask, found: Resources, settings: Settings) -> None:
    from kfp import kubernetes

    security = settings.security
    kubernetes.set_security_context(task, security.run_as_user, security.run_as_group, security.run_as_non_root)
    if settings.image_pull_policy:
        kubernetes.set_image_pull_policy(task, settings.image_pull_policy)
    if settings.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.image_pull_secrets))
    for volume in settings.volumes:
        kubernetes.mount_pvc(task, pvc_name=volume.claim, mount_path=volume.path, sub_path=volume.sub_path)
    for secret in settings.secrets:
        if secret.environment:
            keys = {key: variable for variable, key in secret.environment.items()}
            kubernetes.use_secret_as_env(task, secret_name=secret.name, secret_key_to_env=keys)
        if secret.path:
            kubernetes.use_secret_as_volume(task, secret_name=secret.name, mount_path=secret.path)
    for key, value in (found.node_selector or {}).items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in found.tolerations or ():
        kubernetes.add_toleration(task, **toleration.model_dump())
    for key, value in found.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in found.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)
    if found.timeout:
        kubernetes.set_timeout(task, seconds(found.timeout))


def _bound_tmp(task: PipelineTask, plan: Plan, size: str | None) -> None:
    """Bound what a container keeps in /tmp, unless a volume is mounted there."""
    from kfp import kubernetes

    mounted = {volume.path for volume in plan.settings.volumes} | {secret.path for secret in plan.settings.secrets}
    if size and job.SCRATCH not in mounted:
        kubernetes.empty_dir_mount(task, volume_name="tmp", mount_path=job.SCRATCH, size_limit=size)


def _environment(plan: Plan, node: Node) -> dict[str, str]:
    found = {"PYTHONUNBUFFERED": "1"}
    read = [plan.sources[v.port].location for v in plan.wired(node).values() if v.port in plan.sources]
    if not node.step.network and not any(part.address.scheme == "hf" for text in read for part in parts(text)):
        found["HF_HUB_OFFLINE"] = "1"
    if uri := plan.settings.tracking_uri:
        found |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": plan.settings.experiment or plan.pipeline.name}
    return found


def _job_problems(plan: Plan, node: Node) -> list[str]:
    nodes, settings = plan.asked(node, "nodes"), plan.settings
    (name,) = (p.name for p in node.step.ports().values() if p.resource == "nodes")
    problems = []
    if settings.shared_volume is None and not plan.by_address(node):
        problems.append(
            f"{name}={nodes}: needs platform.kfp.shared_volume, a volume that several machines can write to "
            "(ReadWriteMany), on which they read the inputs and leave the model; or artifacts=store, which takes "
            "the pipeline's object store instead."
        )
    if settings.shared_volume is not None and plan.by_address(node):
        problems.append(
            "platform.kfp.shared_volume: has no effect with multi_node.artifacts=store. Leave out one of them."
        )
    if (fewest := settings.multi_node.elastic_min_nodes) and fewest > nodes:
        problems.append(f"platform.kfp.multi_node.elastic_min_nodes={fewest}: expected up to {name} ({nodes}).")
    if settings.multi_node.elastic_min_nodes and (why := plan.steps[node.name].needs_all_machines()):
        problems.append(
            f"platform.kfp.multi_node.elastic_min_nodes: not with {why}, whose checkpoints are in parts, one for each "
            "process, so that fewer machines cannot go on. Leave out one of them."
        )
    if settings.multi_node.when_evicted == "suspend" and settings.multi_node.queue:
        problems.append(
            "platform.kfp.multi_node.when_evicted=suspend: not with queue, as Kueue itself suspends and resumes its "
            "jobs. Leave out one of them."
        )
    if not problems:
        try:  # what this kind of job has no field for
            multi_node.manifest(_job(plan, node), "compile", ("python3",))
        except UserError as e:
            problems += [f"platform.kfp.multi_node.{line}" for line in str(e).splitlines()]
    return problems


def _job(plan: Plan, node: Node) -> dict[str, t.Any]:
    """The part of a stage's job that is known at compile time; its launcher adds the rest."""
    found, settings, several = plan.settings.stage(node.name), plan.settings, plan.settings.multi_node
    shared = None if plan.by_address(node) else settings.shared_volume
    processes = plan.asked(node, "processes") or 1
    limits = {"cpu": found.cpu_limit, "memory": found.memory_limit}
    if found.accelerator_type:
        limits[found.accelerator_type] = str(processes)
    requests = {"cpu": found.cpu_request, "memory": found.memory_request}
    amounts = {"limits": limits, "requests": requests}
    security = settings.security
    identity = {
        "runAsUser": security.run_as_user,
        "runAsGroup": security.run_as_group,
        "runAsNonRoot": security.run_as_non_root,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    volumes = [*settings.volumes, *([shared] if shared else [])]
    described = job.Job(
        name="",  # it and the two after it follow at launch
        run_id="",
        command=(),
        image=settings.image(node.name, node.step.image),
        nodes=plan.asked(node, "nodes") or 1,
        processes=processes,
        elastic_min_nodes=several.elastic_min_nodes,
        restarts=several.restarts,
        resources={kind: {n: v for n, v in found.items() if v} for kind, found in amounts.items()},
        environment={**_environment(plan, node), **found.environment},
        secrets=[secret.model_dump(exclude_defaults=True) for secret in settings.secrets],
        volumes=[volume.model_dump(exclude_defaults=True) for volume in volumes],
        shm_size=found.shm_size or _shm_size(plan, node),
        tmp_size=found.tmp_size or (job.TMP_SIZE if shared else job.UNLIMITED),
        node_selector=found.node_selector or {},
        tolerations=[_toleration(toleration) for toleration in found.tolerations or ()],
        security={name: value for name, value in identity.items() if value is not None},
        service_account=settings.service_account,
        image_pull_policy=settings.image_pull_policy,
        image_pull_secrets=settings.image_pull_secrets,
        labels=found.labels,
        annotations=found.annotations,
        queue=several.queue,
        priority_class=several.priority_class,
        deadline_seconds=seconds(found.timeout) if found.timeout else None,
        runtime=several.runtime,
        runtime_kind=several.runtime_kind,
    )
    return {
        "kind": settings.kubeflow_job,
        **({"shared": shared.path} if shared else {}),
        "pending_seconds": seconds(several.pending_timeout),
        **({"when_evicted": several.when_evicted} if several.when_evicted != "delete" else {}),
        "job": described.described(),
    }


def _toleration(toleration: Toleration) -> dict[str, t.Any]:
    return {
        "tolerationSeconds" if name == "toleration_seconds" else name: value
        for name, value in toleration.model_dump().items()
        if value is not None
    }


def _shm_size(plan: Plan, node: Node) -> str | None:
    value = plan.asked(node, "shm_size")
    if value is None:
        return None
    if not (match := re.fullmatch(r"([1-9]\d*)([bkmg]?)", value)):
        (name,) = (p.name for p in node.step.ports().values() if p.resource == "shm_size")
        raise UserError(f"{name}={show(value)}: not valid; expected a size, as in 5g or 512m.")
    return match[1] + SHM_SIZES[match[2] or "b"]


# -- functions and their arguments, as kfp's DSL reads them ------------------------------------------------------------


class Argument(t.NamedTuple):
    """One argument of a component or pipeline."""

    name: str
    annotation: t.Any
    help: str
    default: t.Any = REQUIRED


def _parameter(port: Port, default: t.Any, is_location: bool = False) -> Argument:
    limits = f" ({port.wanted})" if port.bounds or port.choices else ""
    if is_location:
        return Argument(port.name, str, port.help, default.location)
    if default is None and port.type is str:
        default = ""  # which the stage takes for unset; not every backend hands on a parameter without a value
    return Argument(port.name, port.type, f"{port.help}{limits}", default)


def _function(
    work: Callable[..., t.Any],
    name: str,
    doc: str,
    arguments: Sequence[Argument],
    returns: t.Any = inspect.Signature.empty,
) -> Callable[..., t.Any]:
    """A function with this signature and docstring, which is called with its arguments in their order."""

    def function(*given: t.Any) -> t.Any:
        return work(*given)

    lines = [f":param {argument.name}: {' '.join(argument.help.split())}" for argument in arguments]
    function.__name__ = name
    function.__doc__ = "\n".join([doc, "", *lines])
    kind, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty  # so that order does not matter
    parameters = [
        inspect.Parameter(a.name, kind, annotation=a.annotation, default=empty if a.default is REQUIRED else a.default)
        for a in arguments
    ]
    vars(function)["__signature__"] = inspect.Signature(parameters, return_annotation=returns)
    return function


def _class(name: str) -> t.Any:
    from kfp import dsl

    return getattr(dsl, name)


def _text(value: t.Any) -> str:
    return show(value) if isinstance(value, bool) else str(value)
