"""Docker: the context of an image that serves the exported model, chat models by OpenAI's routes as well."""

from __future__ import annotations

from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field

from tuneport.deploy.deployment import Deployment, Served

SERVER = "openai_server.py"
DOCKERFILE = """\
FROM {image}
RUN useradd --create-home --uid 10001 served
WORKDIR /home/served
COPY --chown=10001 requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY --chown=10001 model model
COPY --chown=10001 server.py .
USER 10001
ENV MLFLOW_DISABLE_TELEMETRY=true
EXPOSE 8000
CMD ["python", "server.py", "--model", "model", "--name", "{name}", "--host", "0.0.0.0", "--port", "8000"]
"""


class Settings(BaseModel):
    """How the image is built."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("", pattern="^$|^[a-z0-9][a-z0-9-]*$", description="By which requests name it. Empty: the run's.")
    tag: str = Field("", description="Of the image. Empty: the name.")
    image: str = Field("python:3.11-slim", pattern=r"^\S+$", description="That the image builds on.")


def render(model: Served, settings: Settings) -> Deployment:
    """A build context: Dockerfile, the server, the packages that the model names, and the model."""
    name = settings.name or model.name
    packages = (model.folder / "requirements.txt").read_text("utf-8").split()
    tag = settings.tag or name
    return Deployment(
        files={
            "Dockerfile": DOCKERFILE.format(image=settings.image, name=name),
            "requirements.txt": "\n".join([*packages, "fastapi", "uvicorn", ""]),
            "server.py": files(__package__).joinpath(SERVER).read_text("utf-8"),
        },
        folders={"model": model.folder},
        commands=[["docker", "build", "--tag", tag, "."]],
        hint=f"docker run --rm --publish 8000:8000 {tag}",
    )
