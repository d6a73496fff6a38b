"""A generator behind an OpenAI-compatible server: vLLM, SGLang, Ray Serve, or a hosted one.

There the adapter is a model name; how it is written differs (``{adapter}`` on vLLM, ``{base}:{adapter}`` on SGLang), so
it is a template.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import httpx

from ragft_plugin import prompts
from ragft_plugin.errors import ConfigError, GenerationError
from ragft_plugin.lora.escaping import MARKER, break_tokens
from ragft_plugin.lora.openai_attempts import Attempts
from ragft_plugin.lora.openai_wire import Pieces, describe, failure, parse_answer
from ragft_plugin.lora.options import Options
from ragft_plugin.types import Generation, Prompt

_TIMEOUT = 60.0  # seconds


class OpenAIGenerator:
    """Answers prompts through ``/chat/completions``. Safe to call from any thread and any event loop.

    Args:
        base_url: of the API, such as ``http://localhost:8000/v1``.
        model: name of the base there, or of the model if there are no adapters.
        adapter: name of an adapter there, or None.
        template: how the model name is made of ``{adapter}`` and ``{base}``.
        api_key: sent as a bearer token; never shown or logged.
        headers: sent along.
        retries: further attempts after a refused connection, a 429 or a 5xx, before anything was received.
        backoff: seconds before the first further attempt, doubled each time; a server's Retry-After wins.
        concurrency: requests of one ``generate`` under way at once.
        logprobs: ask for log-probabilities; some servers refuse that.
        **defaults: options used where a call gives none; ``timeout`` is 60 seconds unless given.

    Example:
        >>> remote = OpenAIGenerator("http://localhost:8000/v1", "qwen", adapter="legal")
        >>> remote.model
        'legal'
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        adapter: str | None = None,
        template: str = "{adapter}",
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        retries: int = 2,
        backoff: float = 0.5,
        concurrency: int = 16,
        logprobs: bool = True,
        **defaults: Any,
    ) -> None:
        Options.of(defaults)
        self._url = _checked(base_url)
        try:
            self.model = model if adapter is None else template.format(adapter=adapter, base=model)
        except (KeyError, IndexError) as error:
            raise ConfigError(f"template {template!r} names {error}; it may name {{adapter}} and {{base}}") from None
        self._headers = dict(headers or {})
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._retries, self._backoff = retries, backoff
        self._concurrency, self._logprobs = concurrency, logprobs
        self._defaults: dict[str, Any] = {"timeout": _TIMEOUT, **defaults}
        self._client = httpx.Client(headers=self._headers)

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """Answer each prompt.

        Args:
            prompts: what to ask.
            **options: ``max_new_tokens``, ``temperature``, ``stop``, ``seed``, ``timeout``.

        Raises:
            OverloadedError: if the server says it is, to the last attempt.
            GenerationError: if it fails, refuses or takes too long.
        """
        merged = Options.of(self._defaults, options)
        if len(prompts) <= 1:
            return [self._ask(prompt, merged) for prompt in prompts]
        with ThreadPoolExecutor(min(self._concurrency, len(prompts))) as pool:
            return list(pool.map(lambda prompt: self._ask(prompt, merged), prompts))

    async def agenerate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """As ``generate``, without holding a thread."""
        merged = Options.of(self._defaults, options)
        gate = asyncio.Semaphore(self._concurrency)
        async with httpx.AsyncClient(headers=self._headers) as client:

            async def ask(prompt: Prompt) -> Generation:
                async with gate:
                    return await self._aask(client, prompt, merged)

            return list(await asyncio.gather(*(ask(prompt) for prompt in prompts)))

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Yield pieces of the answer; together they are its text.

        Raises:
            PartialAnswerError: if it fails after the first piece; before it, as ``generate``.
        """
        merged = Options.of(self._defaults, options)
        body = self._body(prompt, merged, stream=True)
        attempts = self._attempts(merged)
        while True:
            pieces = Pieces()
            try:
                with self._client.stream("POST", self._completions, json=body, timeout=attempts.seconds) as response:
                    if response.status_code != 200:
                        response.read()
                    self._accept(response)
                    for line in response.iter_lines():
                        if piece := pieces.take(line):
                            yield piece
                        attempts.check()
                pieces.close()
                return
            except (httpx.HTTPError, GenerationError) as error:
                time.sleep(attempts.pause(error, pieces.text))

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[str]:
        """As ``stream``, without holding a thread."""
        merged = Options.of(self._defaults, options)
        body = self._body(prompt, merged, stream=True)
        async with httpx.AsyncClient(headers=self._headers) as client:
            attempts = self._attempts(merged)
            while True:
                pieces = Pieces()
                try:
                    seconds = attempts.seconds
                    async with client.stream("POST", self._completions, json=body, timeout=seconds) as response:
                        if response.status_code != 200:
                            await response.aread()
                        self._accept(response)
                        async for line in response.aiter_lines():
                            if piece := pieces.take(line):
                                yield piece
                            attempts.check()
                    pieces.close()
                    return
                except (httpx.HTTPError, GenerationError) as error:
                    await asyncio.sleep(attempts.pause(error, pieces.text))

    def load_adapter(self, name: str, path: str) -> None:
        """Ask the server to load an adapter that lies on its disk (vLLM and SGLang, where that is switched on)."""
        self._manage("load_lora_adapter", {"lora_name": name, "lora_path": path})

    def unload_adapter(self, name: str) -> None:
        """Ask the server to forget an adapter."""
        self._manage("unload_lora_adapter", {"lora_name": name})

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _completions(self) -> str:
        return f"{self._url}/chat/completions"

    def _body(self, prompt: Prompt, options: Options, *, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {**message, "content": break_tokens(MARKER, message["content"])} for message in prompts.messages(prompt)
            ],
            "max_tokens": options.max_new_tokens,
            "temperature": options.temperature,
        }
        if options.stop:
            body["stop"] = list(options.stop)
        if options.seed is not None:
            body["seed"] = options.seed
        if stream:
            body["stream"] = True
        elif self._logprobs:
            body.update(logprobs=True, top_logprobs=2)
        return body

    def _ask(self, prompt: Prompt, options: Options) -> Generation:
        body = self._body(prompt, options, stream=False)
        attempts = self._attempts(options)
        while True:
            try:
                response = self._client.post(self._completions, json=body, timeout=attempts.seconds)
                self._accept(response)
                return parse_answer(response)
            except (httpx.HTTPError, GenerationError) as error:
                time.sleep(attempts.pause(error))

    async def _aask(self, client: httpx.AsyncClient, prompt: Prompt, options: Options) -> Generation:
        body = self._body(prompt, options, stream=False)
        attempts = self._attempts(options)
        while True:
            try:
                response = await client.post(self._completions, json=body, timeout=attempts.seconds)
                self._accept(response)
                return parse_answer(response)
            except (httpx.HTTPError, GenerationError) as error:
                await asyncio.sleep(attempts.pause(error))

    def _accept(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            raise failure(response, self.model)

    def _attempts(self, options: Options) -> Attempts:
        return Attempts(self._url, retries=self._retries, backoff=self._backoff, timeout=options.timeout)

    def _manage(self, action: str, body: dict[str, str]) -> None:
        try:
            response = self._client.post(f"{self._url}/{action}", json=body, timeout=_TIMEOUT)
        except httpx.HTTPError as error:
            raise describe(error, self._url, _TIMEOUT) from error
        if response.status_code != 200:
            raise GenerationError(
                f"{self._url} refused {action} of {body['lora_name']!r} with status {response.status_code}: "
                f"{response.text[:200]}; on vLLM set VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            )


def _checked(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"base_url {base_url!r} is no URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"base_url {base_url!r} is no address of a server; expected such as http://localhost:8000/v1")
    return base_url.rstrip("/")
