"""Where a user's data and models lie, and how the stages of a cluster get at them."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from tuneport.address import EXTRAS, Address
from tuneport.errors import UserError, did_you_mean
from tuneport.graph import Node, Pipeline, Ref
from tuneport.mixture import is_mixture, parts
from tuneport.step import Port
from tuneport.targets.kfp.settings import Volume

STORES = ("s3", "gs", "minio")
OBJECT_STORES = (*STORES, "oci")  # what Kubeflow fetches itself
READ = tuple(scheme for scheme in EXTRAS if scheme not in ("http", *OBJECT_STORES))  # data that stages read themselves


class Source(t.NamedTuple):
    """A path or URI, as the user wrote it."""

    location: str
    imported: bool  # by KFP's importer; else the stage opens it: on a mounted volume, or where it lies

    @property
    def is_stored(self) -> bool:
        """Whether a stage that reads by address can read it."""
        return self.location.partition("://")[0] in STORES


def sources(
    pipeline: Pipeline, nodes: Sequence[Node], values: Mapping[str, t.Any], volumes: Sequence[Volume]
) -> dict[str, Source]:
    """By input: the sources that these values name. Raises one `UserError` that lists those no stage can reach."""
    read = {v.port for node in nodes for v in node.values.values() if isinstance(v, Ref) and v.node is None}
    found, problems = {}, []
    for name, port in pipeline.params.items():
        if port.kind == "input" and name in read and values[name] is not None:
            try:
                found[name] = _source(port, values[name].location, volumes)
            except UserError as e:
                problems.append(str(e))
    if problems:
        raise UserError("\n".join(problems))
    return found


def _source(port: Port, location: str, volumes: Sequence[Volume]) -> Source:
    got, kind = f"{port.name}={location}", port.type.__name__
    if port.mixable and is_mixture(location):
        for part in parts(location):
            _check_part(port, part.address.text, volumes)
        return Source(location, imported=False)
    scheme, is_uri, rest = location.partition("://")
    if not is_uri:
        _check_path(got, PurePosixPath(location), volumes)
        return Source(location, imported=False)
    if scheme == "https":
        if kind != "File" and not location.endswith(".gguf"):
            raise UserError(f"{got}: no folder can be fetched by https. Put it into an object store or on a volume.")
        return Source(location, imported=False)
    is_data = kind in ("File", "MLTable")
    if is_data and (scheme in READ or (scheme in EXTRAS and set(rest) & set("*?[]"))):
        return Source(location, imported=False)
    if scheme not in OBJECT_STORES:
        known = (*OBJECT_STORES, *(READ if is_data else ("https",)))
        raise UserError(f"{got}: not valid; expected a URI with {', '.join(known)}.{did_you_mean(scheme, known)}")
    if scheme == "oci" and kind in ("File", "MLTable"):
        raise UserError(f"{got}: Kubeflow takes models from an image registry, but no data. Use an object store.")
    if set(rest) & set("*?[]"):
        raise UserError(f"{got}: Kubeflow imports no pattern. Name one file, or the folder that holds the shards.")
    if not re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9._:]*/+[^/].*", rest):
        raise UserError(f"{got}: not valid; expected {scheme}://bucket/key.")
    return Source(location, imported=True)


def _check_part(port: Port, location: str, volumes: Sequence[Volume]) -> None:
    """Raise `UserError` for a source of a mixture that its stage cannot read itself: Kubeflow imports but one."""
    address = Address.of(location)
    if not address.is_local and address.scheme not in EXTRAS:
        raise UserError(
            f"{port.name}={location}: of several sources each is read by the stage itself; expected an address with "
            f"{', '.join(EXTRAS)}, or a path on one of platform.kfp.volumes."
        )
    if address.is_local or address.scheme not in OBJECT_STORES:
        _source(port, location, volumes)


def _check_path(got: str, path: PurePosixPath, volumes: Sequence[Volume]) -> None:
    if ".." not in path.parts and any(path.is_relative_to(volume.path) for volume in volumes):
        return
    mounted = ", ".join(volume.path for volume in volumes) or "none is set"
    raise UserError(
        f"{got}: is a path that no stage on the cluster sees. Expected a URI ({', '.join(OBJECT_STORES)} or https), or "
        f"a path on one of platform.kfp.volumes ({mounted})."
    )
