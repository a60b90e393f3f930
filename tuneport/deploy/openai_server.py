"""Serves an exported model over HTTP; a chat model by OpenAI's routes, too. Stands alone: it is copied into images.

/health and /v1/models say what there is; /invocations takes MLflow's payloads; /v1/chat/completions conversations.
Requests that wait at the same time are answered as one batch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import typing as t
import uuid
from concurrent.futures import ThreadPoolExecutor

MOST_ROWS = 64  # of a batch
REFUSED = {  # what is not done, with the value that asks for nothing
    "n": 1,
    "best_of": 1,
    "stop": None,
    "seed": None,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logprobs": False,
    "top_logprobs": 0,
    "logit_bias": None,
    "response_format": {"type": "text"},
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "modalities": ["text"],
    "functions": None,
    "function_call": "none",
}
READ = {"model", "messages", "tools", "stream", "stream_options", "max_tokens", "max_completion_tokens"}
SAMPLING = {  # of OpenAI's, and of those that others add, the ones that the model has under the same name
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "repetition_penalty": float,
    "no_repeat_ngram_size": int,
    "num_beams": int,
    "length_penalty": float,
}
WITHOUT_EFFECT = {  # on an answer: whose request it is, and how it is kept, paid for or made faster
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prediction"),
    *("prompt_cache_key", "prompt_cache_retention"),
}
STREAM_OPTIONS = {"include_usage", "include_obfuscation"}  # the second pads what is sent, and nothing is padded here
Row = dict[str, t.Any]


class Waiting(t.NamedTuple):
    """A conversation that waits for its answer."""

    row: Row
    params: str  # as JSON: equal ones make a batch
    answer: asyncio.Future[t.Any]


class Refused(ValueError):
    """A request that is not answered, with the status that says why, and the field that is the reason."""

    def __init__(self, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


class Batches:
    """Answers conversations by one thread, all that wait with the same parameters at once."""

    def __init__(self, answers: t.Callable[..., list[Row]]) -> None:
        self.answers = answers
        self.thread = ThreadPoolExecutor(1)
        self.waiting: list[Waiting] = []
        self.at_work = False

    async def __call__(self, row: Row, params: Row) -> Row:
        """The answer to one conversation. Raises ValueError for one that cannot be answered."""
        entry = Waiting(row, json.dumps(params, sort_keys=True), asyncio.get_running_loop().create_future())
        self.waiting.append(entry)
        if not self.at_work:
            self.at_work = True
            self.task = asyncio.create_task(self.work())
        found: Row = await entry.answer
        return found

    async def work(self) -> None:
        """Answer all that waits, and what comes meanwhile."""
        loop = asyncio.get_running_loop()
        try:
            while self.waiting:
                await asyncio.sleep(0)  # those that arrived together wait together
                params = self.waiting[0].params
                batch = [entry for entry in self.waiting if entry.params == params][:MOST_ROWS]
                self.waiting = [entry for entry in self.waiting if entry not in batch]
                answers = await loop.run_in_executor(self.thread, self._answers, batch)
                for entry, answer in zip(batch, answers, strict=True):
                    if entry.answer.done():
                        continue
                    if isinstance(answer, Exception):
                        entry.answer.set_exception(answer)
                    else:
                        entry.answer.set_result(answer)
        finally:
            self.at_work = False

    def _answers(self, batch: list[Waiting]) -> list[t.Any]:
        params = json.loads(batch[0].params)
        try:
            return self.answers([entry.row for entry in batch], **params)
        except Exception as e:
            if len(batch) == 1:
                return [e]
        return [answer for entry in batch for answer in self._answers([entry])]


def parameters(body: Row, known: t.Collection[str]) -> Row:
    """A request's sampling in the words of the model. Raises `Refused` for what it cannot do."""
    if not body.get("tools") and body.get("tool_choice") == "none":  # OpenAI's default where there are no tools
        body = {**body, "tool_choice": None}
    for name, only in REFUSED.items():
        if body.get(name) not in (None, only, [], {}):
            raise Refused(f"{name}={body[name]!r} is not supported; leave it out", param=name)
    for name in sorted(body.keys() - REFUSED.keys() - READ - SAMPLING.keys() - WITHOUT_EFFECT):
        if body[name] is not None:
            raise Refused(f"{name} is not known here, and may change the answer; leave it out", param=name)
    found = {name: body[name] for name in SAMPLING if body.get(name) is not None}
    if found.get("top_k") == -1:  # as others say: from all
        found["top_k"] = 0
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    if most is not None:
        found["max_new_tokens"] = most
    for name, value in found.items():
        whole = SAMPLING.get(name, int) is int
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise Refused(f"{name}={value!r} is not valid; expected a {'whole ' * whole}number", param=name)
        if name not in known:
            raise Refused(f"{name}={value!r} is not supported by this model; leave it out", param=name)
    return found


def with_usage(body: Row) -> bool:
    """Whether a request wants a stream that ends with its usage. Raises `Refused` for what there is not."""
    stream, options = body.get("stream"), body.get("stream_options")
    if stream not in (None, True, False):
        raise Refused(f"stream={stream!r} is not valid; expected true or false", param="stream")
    if options is None:
        return False
    if not stream:
        raise Refused("stream_options has no effect without stream=true; leave it out", param="stream_options")
    if not isinstance(options, dict) or (options.keys() - STREAM_OPTIONS):
        raise Refused(f"stream_options={options!r} is not supported; there is include_usage", param="stream_options")
    wanted = options.get("include_usage")
    if wanted not in (None, True, False):
        raise Refused(f"include_usage={wanted!r} is not valid; expected true or false", param="stream_options")
    return bool(wanted)


def completion(name: str, answer: Row) -> Row:
    """An answer of the model in OpenAI's words."""
    prompt, written = answer["prompt_tokens"], answer["completion_tokens"]
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer["content"]},
                "logprobs": None,
                "finish_reason": answer["finish_reason"],
            }
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
    }


def streamed(answer: Row, usage: bool = False) -> t.Iterator[str]:
    """A whole answer as the events of a stream: the text, its end, and its usage where that is asked for."""
    choice = answer["choices"][0]
    parts: list[tuple[Row, str | None]] = [
        ({"role": "assistant", "content": choice["message"]["content"]}, None),
        ({}, choice["finish_reason"]),
    ]
    head = {key: answer[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    none = {"usage": None} if usage else {}
    for delta, reason in parts:
        chunk = {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **none}
        yield f"data: {json.dumps(chunk)}\n\n"
    if usage:
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': answer['usage']})}\n\n"
    yield "data: [DONE]\n\n"


class Server:
    """A folder's model, and what its routes answer."""

    def __init__(self, folder: str, name: str) -> None:
        import mlflow

        self.name = name
        self.model = mlflow.pyfunc.load_model(folder)
        self.served = self.model.unwrap_python_model()
        self.answers_chats = hasattr(self.served.predictor, "completions")
        self.batches = Batches(getattr(self.served.predictor, "completions", self.served.predictor))

    def health(self) -> Row:
        return {"status": "ok"}

    def models(self) -> Row:
        return {"object": "list", "data": [{"id": self.name, "object": "model", "created": 0, "owned_by": "tuneport"}]}

    async def invocations(self, body: str, kind: str) -> tuple[str, int, str]:
        """The text, status and type that MLflow's own server answers. Raises `Refused`."""
        from mlflow import MlflowException
        from mlflow.pyfunc import scoring_server

        answer: t.Any = scoring_server.invocations
        schema = self.model.metadata.get_input_schema()
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self.batches.thread,
                lambda: answer(data=body, content_type=kind, model=self.model, input_schema=schema),
            )
        except MlflowException as e:
            status: t.Any = e.get_http_status_code
            raise Refused(str(e), status()) from e
        return found.response, found.status, found.mimetype

    async def chat(self, body: t.Any) -> Row:
        """The answer to a request of OpenAI's. Raises ValueError for one that cannot be answered."""
        if not isinstance(body, dict) or "messages" not in body:
            raise Refused("expected a JSON object with messages")
        if body.get("model") not in (None, self.name):
            raise Refused(f"the model {body['model']!r} is not here; there is {self.name!r}", 404, "model")
        with_usage(body)
        params = {**self.served.settings["params"], **parameters(body, self.served.settings["params"])}
        row = {"messages": body["messages"], "tools": body.get("tools")}
        return completion(self.name, await self.batches(row, params))


def application(folder: str, name: str) -> t.Any:
    """The FastAPI application that serves a folder's model."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response, StreamingResponse

    server, app = Server(folder, name), FastAPI(title=name, docs_url=None, redoc_url=None)

    def refuse(_: Request, error: Exception) -> JSONResponse:
        status = error.status if isinstance(error, Refused) else 400
        said = {"message": str(error), "type": "invalid_request_error", "param": getattr(error, "param", None)}
        return JSONResponse({"error": {**said, "code": None}}, status)

    async def invocations(request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        text, status, kind = await server.invocations((await request.body()).decode(), kind)
        return Response(text, status, media_type=kind)

    async def chat(request: Request) -> Response:
        body = json.loads(await request.body())
        answer = await server.chat(body)
        if body.get("stream"):
            return StreamingResponse(streamed(answer, with_usage(body)), media_type="text/event-stream")
        return JSONResponse(answer)

    for function in (invocations, chat):  # FastAPI would look for what their annotations name in this module
        function.__annotations__ = {"request": Request}
    app.add_exception_handler(ValueError, refuse)
    app.get("/health")(server.health)
    app.get("/v1/models")(server.models)
    app.post("/invocations")(invocations)
    if server.answers_chats:
        app.post("/v1/chat/completions")(chat)
    return app


def main() -> None:
    """`python server.py --model FOLDER`."""
    import uvicorn

    parser = argparse.ArgumentParser(description="Serve an exported model.")
    parser.add_argument("--model", required=True, help="Folder of the MLflow model.")
    parser.add_argument("--name", default="model", help="By which requests name it.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    uvicorn.run(application(given.model, given.name), host=given.host, port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
