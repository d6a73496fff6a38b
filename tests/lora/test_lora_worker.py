"""The worker under load, cancellations and faults. Batches are small and the model tiny; the laws are the same."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ragft_plugin.errors import GenerationError, OverloadedError, PartialAnswerError
from ragft_plugin.lora import LoraModel
from ragft_plugin.lora.batch import Batch
from ragft_plugin.lora.options import Options
from ragft_plugin.lora.request import Request
from ragft_plugin.prompts import closed_book, open_book
from ragft_plugin.types import Generation, Passage, Prompt

ARMS = [None, "red", "green", "blue"]
NEAR_TIE = 1e-4
WAIT = 20.0  # seconds after which a test has hung


def some_prompt(number: int) -> Prompt:
    chance = random.Random(number)
    words = " ".join(
        chance.choices(["pump", "river", "site", "blue", "made", "seven", "which"], k=chance.randint(1, 9))
    )
    if number % 3:
        return closed_book(words)
    return open_book(words, [Passage("1", f"the {words} is near the copper bridge")])


def same(got: Generation, serial: Generation) -> bool:
    """Equal, or they part where the serial run's two best tokens were as good as tied."""
    if got.text == serial.text:
        return True
    assert serial.margins is not None
    return min(serial.margins) < NEAR_TIE


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@contextmanager
def patched(target: Any, name: str, replacement: Any) -> Iterator[None]:
    before = getattr(target, name)
    setattr(target, name, replacement)
    try:
        yield
    finally:
        setattr(target, name, before)


@pytest.fixture(scope="module")
def serial(model: LoraModel) -> dict[tuple[str | None, int], Generation]:
    return {
        (arm, n): model.generator(arm, max_new_tokens=3 + n % 9).generate([some_prompt(n)])[0]
        for arm in ARMS
        for n in range(20)
    }


def ask(model: LoraModel, arm: str | None, n: int, **options: Any) -> Generation:
    generator = model.generator(arm, max_new_tokens=3 + n % 9)
    return generator.generate([some_prompt(n)], **options)[0]


@pytest.mark.parametrize(("times", "threads"), [(4, 32), pytest.param(25, 64, marks=pytest.mark.slow)])
def test_mixed_requests_of_many_threads_are_answered_as_serial_ones(
    model: LoraModel, serial: dict[tuple[str | None, int], Generation], times: int, threads: int
) -> None:
    jobs = [(arm, n) for arm in ARMS for n in range(20)] * times
    random.Random(0).shuffle(jobs)
    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(lambda job: ask(model, *job), jobs))
    assert all(same(got, serial[job]) for got, job in zip(answers, jobs, strict=True))
    exact = sum(got.text == serial[job].text for got, job in zip(answers, jobs, strict=True))
    assert exact >= len(jobs) - len(jobs) // 160


@pytest.mark.parametrize("batching", ["grouped", "mixed"])
def test_one_mixed_batch_answers_as_a_batch_for_each_adapter(
    base_folder: Path,
    adapter_folders: dict[str, Path],
    serial: dict[tuple[str | None, int], Generation],
    batching: Any,
) -> None:
    sizes: set[int] = set()
    with LoraModel.load(base_folder, batching=batching) as model:
        for name, folder in adapter_folders.items():
            model.load_adapter(name, folder)
        forward = model.worker.forward

        def counting(adapters: Any, **inputs: Any) -> Any:
            sizes.add(len(set(adapters)))
            return forward(adapters, **inputs)

        jobs = [(arm, n) for n in range(12) for arm in ARMS]
        with patched(model.worker, "forward", counting), ThreadPoolExecutor(16) as pool:
            for job, got in zip(jobs, pool.map(lambda job: ask(model, *job), jobs), strict=True):
                assert same(got, serial[job])
    assert (max(sizes) > 1) == (batching == "mixed")


def test_a_fault_of_the_worker_itself_fails_who_is_there_and_serves_who_comes(
    model: LoraModel, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("bug")

    with patched(model.worker, "_settle", broken), pytest.raises(GenerationError, match="RuntimeError: bug"):
        ask(model, "red", 1)
    assert ask(model, "red", 1).usage.completion_tokens
    assert "the worker failed" in caplog.text


@pytest.mark.parametrize(("requests", "threads"), [(160, 24), pytest.param(2000, 64, marks=pytest.mark.slow)])
def test_cancellations_and_faults_fail_only_what_they_hit(
    model: LoraModel, serial: dict[tuple[str | None, int], Generation], requests: int, threads: int
) -> None:
    """A fifth of the requests is cancelled, a tenth is poisoned; the others do not notice."""
    worker = model.worker
    forward = worker._forward

    def poisoned(rows: Any, **inputs: Any) -> Any:
        if any(row.request.ids[-1] == 0 for row in rows) and inputs["input_ids"].shape[1] > 1:
            raise RuntimeError("poison")
        return forward(rows, **inputs)

    def job(number: int) -> str:
        arm, n = ARMS[number // 20 % 4], number % 20
        chance = random.Random(number)
        if number % 10 == 3:
            request = Request([5, 6, 0], arm, Options(max_new_tokens=4))
            worker.submit([request])
            with pytest.raises(GenerationError, match="poison"):
                request.future.result(WAIT)
            return "poisoned"
        if number % 4 == 1:
            ids = model.renderer.render(some_prompt(n))
            request = Request(ids, arm, Options(max_new_tokens=200))
            worker.submit([request])
            time.sleep(chance.random() * 0.02)
            request.future.cancel()
            return "cancelled"
        assert same(ask(model, arm, n), serial[arm, n])
        return "answered"

    with patched(worker, "_forward", poisoned), ThreadPoolExecutor(threads) as pool:
        kinds = list(pool.map(job, range(requests)))
    shares = {"poisoned": requests // 10, "cancelled": requests // 5, "answered": requests * 7 // 10}
    assert {k: kinds.count(k) for k in set(kinds)} == shares
    assert same(ask(model, "red", 5), serial["red", 5])


def test_a_fault_in_a_step_fails_its_group_and_no_other(
    model: LoraModel, serial: dict[tuple[str | None, int], Generation]
) -> None:
    step = Batch.step

    def failing(self: Batch) -> torch.Tensor:
        if self.rows[0].request.adapter == "red":
            raise RuntimeError("cache on fire")
        return step(self)

    with patched(Batch, "step", failing), ThreadPoolExecutor(8) as pool:
        jobs = [(arm, n) for n in range(6) for arm in ARMS]
        futures = {job: pool.submit(ask, model, *job) for job in jobs}
        for (arm, n), future in futures.items():
            if arm == "red":
                with pytest.raises(GenerationError, match="the model failed: RuntimeError: cache on fire"):
                    future.result(WAIT)
            else:
                assert same(future.result(WAIT), serial[arm, n])
    assert same(ask(model, "red", 1), serial["red", 1])


def test_a_bad_prompt_does_not_fail_those_read_along_with_it(model: LoraModel) -> None:
    good = [Request(model.renderer.render(some_prompt(n)), None, Options(max_new_tokens=3)) for n in range(4)]
    bad = Request([10**9], None, Options(max_new_tokens=3))  # no such token
    model.worker.submit([*good[:2], bad, *good[2:]])
    with pytest.raises(GenerationError, match="the model failed"):
        bad.future.result(WAIT)
    assert all(request.future.result(WAIT).usage.completion_tokens for request in good)


def hold(model: LoraModel) -> tuple[threading.Event, threading.Thread]:
    """Keep the worker busy between two steps until the event is set."""
    release, held = threading.Event(), threading.Event()

    def wait() -> None:
        held.set()
        release.wait(WAIT)

    thread = threading.Thread(target=model.worker.call, args=(wait,))
    thread.start()
    assert held.wait(WAIT)
    return release, thread


def test_a_full_queue_is_refused_and_empties_again(base_folder: Path) -> None:
    with LoraModel.load(base_folder, max_pending=3) as model:
        release, thread = hold(model)
        generator = model.generator(max_new_tokens=2)
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(generator.generate, [some_prompt(n)]) for n in range(3)]
            while len(model.worker._pending) < 3:
                time.sleep(0.001)
            with pytest.raises(OverloadedError, match="at most 3 may; try again later"):
                generator.generate([some_prompt(9)])
            release.set()
            assert all(w.result(WAIT)[0].usage.completion_tokens == 2 for w in waiting)
        thread.join()
        # One caller's long list is no overload by itself.
        assert len(generator.generate([some_prompt(n) for n in range(10)])) == 10


def test_a_request_that_takes_too_long_fails_and_leaves(model: LoraModel) -> None:
    release, thread = hold(model)
    threading.Timer(0.1, release.set).start()
    with pytest.raises(GenerationError, match=r"no answer within 0\.05 s; raise timeout"):
        model.generator(max_new_tokens=2).generate([some_prompt(1)], timeout=0.05)
    thread.join()
    wait_until(lambda: not model.worker._batches)


def test_a_timeout_in_a_stream_carries_the_text(model: LoraModel) -> None:
    step = Batch.step

    def slow(self: Batch) -> torch.Tensor:
        time.sleep(0.02)
        return step(self)

    with patched(Batch, "step", slow), pytest.raises(PartialAnswerError) as caught:
        list(model.generator("red").stream(some_prompt(1), timeout=0.3))
    assert caught.value.text


def test_leaving_a_stream_early_frees_the_worker(model: LoraModel) -> None:
    stream = model.generator("red", max_new_tokens=200).stream(some_prompt(2))
    assert next(stream)
    stream.close()  # type: ignore[attr-defined]
    wait_until(lambda: not model.worker._batches)


async def test_cancelling_a_task_stops_its_generation(model: LoraModel) -> None:
    step = Batch.step

    def slow(self: Batch) -> torch.Tensor:
        time.sleep(0.01)
        return step(self)

    with patched(Batch, "step", slow):
        wait_until(lambda: not model.worker._batches)
        task = asyncio.create_task(model.generator(max_new_tokens=200).agenerate([some_prompt(1)] * 3))
        while not model.worker._batches:
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        end = time.monotonic() + 1.0  # 200 steps would take two seconds
        while model.worker._batches:
            assert time.monotonic() < end
            await asyncio.sleep(0.002)


async def test_waiting_for_an_answer_leaves_the_loop_free(model: LoraModel) -> None:
    step = Batch.step

    def slow(self: Batch) -> torch.Tensor:
        time.sleep(0.01)
        return step(self)

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    with patched(Batch, "step", slow):
        ticking = asyncio.create_task(tick())
        await model.generator(max_new_tokens=20).agenerate([some_prompt(1)])
        ticking.cancel()
    assert ticks >= 8


def test_many_event_loops_share_one_model(model: LoraModel, serial: dict[tuple[str | None, int], Generation]) -> None:
    async def several(start: int) -> list[Generation]:
        jobs = [(ARMS[(start + i) % 4], (start + i) % 20) for i in range(8)]
        return [
            answers[0]
            for answers in await asyncio.gather(
                *(model.generator(arm, max_new_tokens=3 + n % 9).agenerate([some_prompt(n)]) for arm, n in jobs)
            )
        ]

    with ThreadPoolExecutor(6) as pool:
        loops = [pool.submit(lambda s=start: asyncio.run(several(s))) for start in range(6)]
        for start, loop in enumerate(loops):
            for i, got in enumerate(loop.result(WAIT)):
                assert same(got, serial[ARMS[(start + i) % 4], (start + i) % 20])


def test_an_arrival_joins_rows_under_way(model: LoraModel) -> None:
    """The second request ends before the first, which was there long before it."""
    step = Batch.step
    sizes: list[int] = []

    def slow(self: Batch) -> torch.Tensor:
        time.sleep(0.003)
        sizes.append(len(self.rows))
        return step(self)

    generator = model.generator("blue")
    with patched(Batch, "step", slow), ThreadPoolExecutor(2) as pool:
        first = pool.submit(generator.generate, [some_prompt(1)], max_new_tokens=100)
        wait_until(lambda: len(sizes) > 5)
        second = pool.submit(generator.generate, [some_prompt(3)], max_new_tokens=4)
        second.result(WAIT)
        assert not first.done()
        alone = first.result(WAIT)[0]
    assert 2 in sizes
    assert same(alone, generator.generate([some_prompt(1)], max_new_tokens=100)[0])


def test_streams_of_a_batch_are_served_side_by_side(model: LoraModel) -> None:
    order: list[int] = []

    def read(n: int) -> str:
        text = ""
        for piece in model.generator(ARMS[n], max_new_tokens=40).stream(some_prompt(n)):
            order.append(n)
            text += piece
        return text

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(read, range(4)))
    for n, text in enumerate(texts):
        assert text == model.generator(ARMS[n], max_new_tokens=40).generate([some_prompt(n)])[0].text
    assert sum(a != b for a, b in itertools.pairwise(order)) > 8


def test_closing_fails_what_waits_and_what_comes(base_folder: Path) -> None:
    model = LoraModel.load(base_folder)
    generator = model.generator(max_new_tokens=200)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(generator.generate, [some_prompt(1)] * 3)
        wait_until(lambda: bool(model.worker._batches) or waiting.done())
        model.close()
        if waiting.exception(WAIT) is not None:
            with pytest.raises(GenerationError, match="was closed while"):
                waiting.result()
    with pytest.raises(GenerationError, match="the model is closed; load it again"):
        generator.generate([some_prompt(1)])
    model.close()


def test_more_requests_than_rows_are_all_answered(base_folder: Path) -> None:
    with LoraModel.load(base_folder, max_rows=2) as model:
        generator = model.generator(max_new_tokens=4)
        got = generator.generate([some_prompt(n) for n in range(9)])
        assert [g.text for g in got] == [generator.generate([some_prompt(n)])[0].text for n in range(9)]


def test_an_error_between_steps_reaches_its_caller_alone(model: LoraModel) -> None:
    with pytest.raises(ZeroDivisionError):
        model.worker.call(lambda: 1 // 0)
    assert ask(model, None, 1)
