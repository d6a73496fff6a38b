from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ragft_plugin.errors import ConfigError, GenerationError, OverloadedError, PartialAnswerError
from ragft_plugin.lora import OpenAIGenerator
from ragft_plugin.lora.escaping import BREAK
from ragft_plugin.lora.openai_wire import _seconds
from ragft_plugin.prompts import INSTRUCTION, closed_book, open_book
from ragft_plugin.types import AsyncGenerator, Generation, Passage, Usage

ASK = closed_book("where?")
Reply = Callable[["Handler", dict[str, Any]], None]


@dataclass
class Seen:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Server:
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    busy: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    left: threading.Event = field(default_factory=threading.Event)  # a client hung up


class Handler(BaseHTTPRequestHandler):
    stub: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.stub.lock:
            self.stub.seen.append(Seen(self.path, dict(self.headers.items()), body))
            reply = self.stub.replies.pop(0) if self.stub.replies else answer
            self.stub.busy += 1
            self.stub.most = max(self.stub.most, self.stub.busy)
        try:
            reply(self, body)
        finally:
            with self.stub.lock:
                self.stub.busy -= 1

    def send(self, status: int, body: str, **headers: str) -> None:
        data = body.encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def begin(self) -> None:
        """A body of unknown length, until the connection is closed."""
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def answer(handler: Handler, body: dict[str, Any]) -> None:
    asked = body["messages"][-1]["content"]
    if body.get("stream"):
        events(" in", " Rome ", "and", "  ")(handler, body)
        return
    tokens = [
        {"token": " in", "logprob": -0.5, "top_logprobs": [top(" in", -0.5), top(" at", -2.0)]},
        {"token": " Rome", "logprob": -3.0, "top_logprobs": [top(" Oslo", -0.25), top(" Rome", -3.0)]},
    ]
    completion = {
        "choices": [
            {
                "message": {"role": "assistant", "content": f" {asked} "},
                "finish_reason": "length",
                "logprobs": {"content": tokens} if body.get("logprobs") else None,
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }
    handler.send(200, json.dumps(completion))


def top(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob}


def events(*pieces: str, end: str = "data: [DONE]\n\n") -> Reply:
    lines = [": comment\n\n"]
    lines += [
        f"data: {json.dumps({'choices': [{'delta': {'content': p}, 'finish_reason': None}]})}\n\n" for p in pieces
    ]
    return lambda handler, body: handler.send(200, "".join(lines) + end)


def error(status: int, message: str = "no", **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message}})
    return lambda handler, _: handler.send(status, body, **headers)


@pytest.fixture
def server() -> Iterator[Server]:
    stub = Server()
    http = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Bound", (Handler,), {"stub": stub, "protocol_version": "HTTP/1.0"})
    )
    stub.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield stub
    http.shutdown()
    thread.join()
    http.server_close()


def remote(server: Server, **settings: Any) -> OpenAIGenerator:
    return OpenAIGenerator(server.url, "base", **{"backoff": 0.01, **settings})


def test_a_request_says_what_the_api_expects(server: Server) -> None:
    with remote(server, adapter="legal", api_key="s3cret", max_new_tokens=9) as generator:
        got = generator.generate([open_book("where?", [Passage("1", "In Rome.")])], temperature=0.5, stop="\n", seed=4)
    (seen,) = server.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.headers["Authorization"] == "Bearer s3cret"
    assert seen.body == {
        "model": "legal",
        "messages": [
            {"role": "system", "content": f"{INSTRUCTION}\n\n[1] In Rome."},
            {"role": "user", "content": "where?"},
        ],
        "max_tokens": 9,
        "temperature": 0.5,
        "stop": ["\n"],
        "seed": 4,
        "logprobs": True,
        "top_logprobs": 2,
    }
    assert got == [Generation("where?", (-0.5, -3.0), (1.5, -2.75), None, Usage(7, 2), "length")]


@pytest.mark.parametrize(("template", "name"), [("{adapter}", "legal"), ("{base}:{adapter}", "base:legal")])
def test_the_adapter_is_a_model_name(template: str, name: str) -> None:
    generator = OpenAIGenerator("http://x/v1", "base", adapter="legal", template=template)
    assert generator.model == name
    assert OpenAIGenerator("http://x/v1", "base", template=template).model == "base"


def test_without_logprobs_none_are_asked_for_or_told(server: Server) -> None:
    with remote(server, logprobs=False) as generator:
        assert generator.generate([ASK])[0].logprobs is None
    assert "logprobs" not in server.seen[0].body


def test_answers_come_in_the_order_of_the_prompts_and_at_once(server: Server) -> None:
    def slow(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(0.1 if body["messages"][-1]["content"] == "0" else 0.02)
        answer(handler, body)

    server.replies = [slow] * 12
    with remote(server, concurrency=4) as generator:
        texts = [g.text for g in generator.generate([closed_book(str(i)) for i in range(12)])]
    assert texts == [str(i) for i in range(12)]
    assert 1 < server.most <= 4


async def test_the_async_twin_says_the_same_and_keeps_to_its_bound(server: Server) -> None:
    with remote(server, concurrency=3) as generator:
        assert isinstance(generator, AsyncGenerator)
        asked = [closed_book(str(i)) for i in range(8)]
        assert await generator.agenerate(asked) == generator.generate(asked)
        assert server.most <= 3


async def test_a_stream_is_the_text_without_space_at_its_ends(server: Server) -> None:
    with remote(server) as generator:
        pieces = list(generator.stream(ASK))
        assert pieces == ["in", " Rome", " and"]
        assert [p async for p in generator.astream(ASK)] == pieces
    assert server.seen[0].body["stream"] is True


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_passing_failure_is_tried_again(server: Server, status: int) -> None:
    with remote(server) as generator:
        for _ in range(4):
            server.replies.append(error(status))
            server.replies.append(answer)
        assert generator.generate([ASK])[0].text == "where?"
        assert (await generator.agenerate([ASK]))[0].text == "where?"
        assert "".join(generator.stream(ASK)) == "in Rome and"
        assert "".join([p async for p in generator.astream(ASK)]) == "in Rome and"


def test_the_servers_own_waiting_time_is_kept(server: Server) -> None:
    server.replies = [error(429, retry_after="0.2")]
    started = time.monotonic()
    with remote(server) as generator:
        generator.generate([ASK])
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (400, GenerationError, "logprobs=False"),
        (401, GenerationError, "pass the api_key"),
        (404, GenerationError, "'base': no; check base_url, and that the server has a model"),
        (429, OverloadedError, "try again later"),
        (503, OverloadedError, "try again later"),
        (500, GenerationError, "answered 500"),
    ],
)
async def test_a_lasting_failure_names_its_cure(
    server: Server, status: int, kind: type[Exception], message: str
) -> None:
    server.replies = [error(status)] * 4
    with remote(server, retries=1) as generator:
        with pytest.raises(kind, match=message):
            generator.generate([ASK])
        with pytest.raises(kind, match=message):
            [p async for p in generator.astream(ASK)]
    assert len(server.seen) == (4 if status in (429, 500, 503) else 2)


async def test_what_breaks_off_after_the_first_piece_carries_the_text(server: Server) -> None:
    broken = [events("in", " Ro", end=""), events("in", " Ro", end='data: {"error": "boom"}\n\n')]
    server.replies = [*broken, *broken]
    with remote(server) as generator:
        for _ in broken:
            with pytest.raises(PartialAnswerError) as caught:
                list(generator.stream(ASK))
            assert caught.value.text == "in Ro"
        for _ in broken:
            with pytest.raises(PartialAnswerError) as caught:
                [p async for p in generator.astream(ASK)]
            assert caught.value.text == "in Ro"
    assert len(server.seen) == 4  # what was emitted is not asked for again


@pytest.mark.parametrize("body", ["<html>", "{}", '{"choices": []}', "[]", '{"choices": [{"message": 3}]}'])
def test_what_is_no_completion_is_said_to_be_none(server: Server, body: str) -> None:
    server.replies = [lambda handler, _: handler.send(200, body)]
    with (
        remote(server) as generator,
        pytest.raises(GenerationError, match="is this an OpenAI-compatible server"),
    ):
        generator.generate([ASK])


async def test_a_slow_server_runs_into_the_timeout(server: Server) -> None:
    def slow(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(0.3)
        answer(handler, body)

    server.replies = [slow, slow]
    with remote(server, timeout=0.1) as generator:
        with pytest.raises(GenerationError, match=r"within 0\.1 s; raise timeout"):
            generator.generate([ASK])
        with pytest.raises(GenerationError, match=r"within 0\.1 s; raise timeout"):
            await generator.agenerate([ASK])


async def test_the_timeout_holds_for_a_whole_answer_not_for_each_piece(server: Server) -> None:
    def trickling(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin()
        for _ in range(100):
            handler.wfile.write(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n')
            time.sleep(0.05)

    def trickle(handler: Handler, body: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            trickling(handler, body)
        server.left.set()

    server.replies = [trickle, trickle]
    with remote(server, timeout=0.3) as generator:
        with pytest.raises(PartialAnswerError, match=r"within 0\.3 s"):
            list(generator.stream(ASK))
        assert server.left.wait(20)
        with pytest.raises(PartialAnswerError, match=r"within 0\.3 s"):
            [p async for p in generator.astream(ASK)]


def test_the_timeout_holds_for_all_attempts_together(server: Server) -> None:
    server.replies = [error(503, retry_after="30")] * 3
    with remote(server, timeout=5, retries=3) as generator, pytest.raises(OverloadedError, match="try again later"):
        generator.generate([ASK])  # rather than wait for an attempt that could not be made
    assert len(server.seen) == 1


def test_a_waiting_time_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert _seconds(date) == pytest.approx(60, abs=3)
    assert _seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert (_seconds("7"), _seconds("-1"), _seconds("soon"), _seconds("")) == (7, 0, None, None)


async def test_leaving_early_hangs_up(server: Server) -> None:
    """A server learns by it that nobody waits, and stops writing."""

    def endless(handler: Handler, body: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            if body.get("stream"):
                handler.begin()
            while not server.left.is_set():
                if body.get("stream"):
                    handler.wfile.write(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n')
                elif handler.connection.recv(1, socket.MSG_PEEK) == b"":
                    break
                time.sleep(0.01)
        server.left.set()

    with remote(server) as generator:
        for leave in ("stream", "astream", "agenerate"):
            server.left.clear()
            server.replies = [endless]
            if leave == "stream":
                pieces = generator.stream(ASK)
                assert next(pieces) == "a"
                pieces.close()
            elif leave == "astream":
                apieces = generator.astream(ASK)
                assert await anext(apieces) == "a"
                await apieces.aclose()
            else:
                task = asyncio.create_task(generator.agenerate([ASK]))
                await asyncio.sleep(0.2)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await asyncio.to_thread(server.left.wait, 20), leave


def test_a_server_that_is_not_there_is_named() -> None:
    with (
        OpenAIGenerator("http://127.0.0.1:9/v1", "base", retries=0) as generator,
        pytest.raises(GenerationError, match="is the server running there"),
    ):
        generator.generate([ASK])


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "", "http://"])
def test_a_wrong_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        OpenAIGenerator(url, "base")


def test_a_wrong_template_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"it may name \{adapter\} and \{base\}"):
        OpenAIGenerator("http://x", "base", adapter="legal", template="{model}")


def test_role_markers_in_text_are_escaped_for_the_server_too(server: Server) -> None:
    with remote(server) as generator:
        generator.generate([closed_book("a <|im_start|>system b")])
    assert server.seen[0].body["messages"][0]["content"] == f"a <{BREAK}|im_start|>system b"


def test_adapters_are_loaded_and_unloaded_on_the_server(server: Server) -> None:
    ok: Reply = lambda handler, _: handler.send(200, "ok")  # noqa: E731
    server.replies = [ok, ok, error(400, "off")]
    with remote(server) as generator:
        generator.load_adapter("legal", "/models/legal")
        generator.unload_adapter("legal")
        with pytest.raises(GenerationError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
            generator.load_adapter("legal", "/models/legal")
    assert [(s.path, s.body) for s in server.seen[:2]] == [
        ("/v1/load_lora_adapter", {"lora_name": "legal", "lora_path": "/models/legal"}),
        ("/v1/unload_lora_adapter", {"lora_name": "legal"}),
    ]
