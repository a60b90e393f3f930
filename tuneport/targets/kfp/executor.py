"""A stage inside a container of Kubeflow Pipelines: from KFP's executor input to the stage's values, and back."""

from __future__ import annotations

import shutil
import tempfile
import typing as t
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tuneport.address import EXTRAS, Address
from tuneport.artifacts import MANIFEST, File, MLTable, write_atomically
from tuneport.errors import UserError
from tuneport.json_yaml import parse_json, to_json
from tuneport.mixture import is_mixture
from tuneport.step import Port, Step
from tuneport.targets.kfp import by_address
from tuneport.targets.kfp.views import render

# The flags of a stage in a container of KFP: its executor input, and for a stage on several machines job and run.
FLAG, JOB_FLAG, RUN_FLAG = "--kfp_executor_input", "--kfp_job", "--kfp_run_id"
ARTIFACTS_FLAG, BY_STORE = "--kfp_artifacts", "store"  # of a stage that brings artifacts from and to the store itself
VALUES_FLAG = "--kfp_values"  # of a stage on one of several machines: its values as JSON
LOCATION = "_location"  # ends the name of a parameter that stands for an input artifact, as a path or https URI
MOUNTS = {"gs://": "/gcs/", "s3://": "/s3/", "minio://": "/minio/", "oci://": "/oci/"}  # where KFP puts what it fetches
TIMEOUT = 60  # seconds without a byte from a web server
JSON = dict[str, t.Any]


def run(
    step: type[Step],
    executor_input: str,
    flags: Mapping[str, t.Any],
    work: Callable[[Mapping[str, t.Any]], int],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a stage for KFP: ``work`` gets all its values by name; what it wrote is checked, shown and reported.

    ``flags``: the values that the command line settles. ``environment``: of a stage that reads and writes artifacts
    by their address; its outputs' paths here stay empty, so that KFP, too, uploads nothing and keeps their
    address. Returns the exit code of the work.
    """
    task = _parse(executor_input)
    outputs = {name: _first(found) for name, found in task["outputs"].get("artifacts", {}).items()}
    ports = step.ports()
    elsewhere = {
        name: (ports[name].type, by_address.address(name, artifact["uri"], environment))
        for name, artifact in outputs.items()
        if environment is not None and name in ports
    }
    places = {name: local_path(artifact) for name, artifact in outputs.items() if name not in elsewhere}
    for place in places.values():
        place.parent.mkdir(parents=True, exist_ok=True)
    with _inputs(task, step, environment) as given:
        own = {name: place for name, place in places.items() if name in ports}
        code = work({**flags, **given, **own, **{name: place.text for name, (_, place) in elsewhere.items()}})
    if code != 0:
        return code
    by_address.check(elsewhere)
    metadata = _show(step, places, {name: place for name, (_, place) in elsewhere.items()})
    for name, place in places.items():
        if not place.exists() or (name in ports and not (place / MANIFEST).is_file()):
            raise RuntimeError(f"{step.name()} wrote no {name} to {place}")
    for name, parameter in task["outputs"].get("parameters", {}).items():
        Path(parameter["outputFile"]).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(parameter["outputFile"]), outputs[name.removesuffix(LOCATION)]["uri"])
    _report(Path(task["outputs"]["outputFile"]), outputs, metadata)
    return 0


def values(text: str) -> JSON:
    """The values of a stage on one of several machines, as the launcher of its job wrote them.

    Raises `UserError` where they are none.
    """
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{VALUES_FLAG}: not valid; expected a JSON object with the values of the stage, by name.")
    return found


def _parse(text: str) -> JSON:
    try:
        task = parse_json(text)
        _ = task["outputs"]["outputFile"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{FLAG}: not valid; expected what Kubeflow Pipelines puts in the place of {{{{$}}}}."
        ) from None
    return t.cast(JSON, task)


def _first(artifact_list: JSON) -> JSON:
    return t.cast(JSON, artifact_list["artifacts"][0])


def local_path(artifact: Mapping[str, t.Any]) -> Path:
    """Where KFP has put an artifact, or wants it, in this container."""
    custom = artifact.get("customPath") or artifact.get("custom_path")
    uri: str = custom or artifact["uri"]
    for scheme, mount in MOUNTS.items():
        if uri.startswith(scheme):
            rest = uri.removeprefix(scheme)
            return Path(mount, rest.replace("/", "_"), "models") if scheme == "oci://" else Path(mount, rest)
    return Path(uri.removeprefix("file://"))


@contextmanager
def _inputs(task: JSON, step: type[Step], environment: Mapping[str, str] | None) -> Iterator[JSON]:
    """The inputs and parameters that KFP hands over, by name; what lies on a web server is fetched for as long."""
    inputs, ports = task.get("inputs", {}), step.ports()
    given: JSON = {}
    with tempfile.TemporaryDirectory(prefix="tuneport-") as folder:
        for name, artifacts in inputs.get("artifacts", {}).items():
            if artifacts.get("artifacts"):
                given[name] = local_path(_first(artifacts))
        for name, value in inputs.get("parameterValues", {}).items():
            if value is None or (value == "" and name in ports and ports[name].optional):
                continue  # an optional parameter that is not set
            if name in ports:
                given[name] = _number(value, ports[name].type)
            elif name.endswith(LOCATION):
                port = name.removesuffix(LOCATION)
                if environment is not None and value.startswith(tuple(MOUNTS)):
                    given[port] = by_address.address(port, value, environment).text
                else:
                    given[port] = _located(port, value, Path(folder), ports.get(port))
            else:
                given[name] = value  # unknown: refused with the others
        yield given


def _located(name: str, value: str, folder: Path, port: Port | None) -> str | Path:
    """A path, or the address of data, which its stage reads where it lies; anything else is fetched."""
    address = Address.of(value)
    if port is not None and port.mixable and is_mixture(value):
        return value
    if "://" not in value:
        return Path(value)
    if port is not None and port.type in (File, MLTable) and address.scheme in EXTRAS:
        return value
    return fetch(name, value, folder)


def _number(value: t.Any, type_: type) -> t.Any:
    """A whole number, which JSON's writers may have made 3.0."""
    return int(value) if type_ is int and isinstance(value, float) and value.is_integer() else value


def fetch(name: str, uri: str, folder: Path) -> Path:
    """Fetch what an input names from a web server, under its own file name.

    Raises `UserError` where the server cannot be reached or refuses.
    """
    if urllib.parse.urlsplit(uri).scheme not in ("http", "https"):  # a file:// would read this container's own files
        raise UserError(f"{name}={uri}: not valid; expected an https address, or a path on a mounted volume.")
    target = folder / name / (Path(urllib.parse.urlsplit(uri).path).name or "data")
    target.parent.mkdir()
    try:
        with urllib.request.urlopen(uri, timeout=TIMEOUT) as answer, target.open("wb") as f:
            shutil.copyfileobj(answer, f)
    except (urllib.error.URLError, OSError) as e:
        raise UserError(f"{name}={uri}: cannot be fetched ({e}). Mend the address, or put it elsewhere.") from None
    return target


def _show(step: type[Step], places: Mapping[str, Path], elsewhere: Mapping[str, Address]) -> dict[str, JSON]:
    """Write the outputs that are made for people; returns their metadata by name."""
    metadata = {}
    with tempfile.TemporaryDirectory(prefix="tuneport-") as folder:
        for port in step.ports().values():
            for name, view in port.views.items():
                if name not in places:
                    continue
                if port.name in elsewhere:
                    by_address.bring_file(elsewhere[port.name], view.file, Path(folder, port.name))
                metadata[name] = render(view, places.get(port.name, Path(folder, port.name)), places[name])
    return metadata


def _report(path: Path, outputs: Mapping[str, JSON], metadata: Mapping[str, JSON]) -> None:
    """Tell KFP what there is now."""
    artifacts = {}
    for name, artifact in outputs.items():
        known = {key: artifact[key] for key in ("name", "uri", "customPath") if artifact.get(key)}
        found = {**artifact.get("metadata", {}), **metadata.get(name, {})}
        artifacts[name] = {"artifacts": [{**known, "metadata": found}]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_json({"artifacts": artifacts}))
