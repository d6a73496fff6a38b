"""Rendering: a prompt becomes token ids, the same way for training and for answering.

The tokenizer's own chat template is used. Passages go to a template that knows ``documents`` through that
argument, and to any other in a system message. Text that users, documents or training rows bring can not inject
a role: special tokens in it are broken by a zero-width character before the template sees them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2.exceptions import TemplateError

from ragft_plugin import prompts
from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.lora.escaping import MARKER, break_tokens, pattern_of
from ragft_plugin.types import Prompt

IGNORED = -100  # the label that cross entropy leaves out
# For a base that was never taught to chat.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}Answer: {{ m['content'] }}{{ eos_token }}"
    "{% elif m['role'] == 'user' %}Question: {{ m['content'] }}\n{% else %}{{ m['content'] }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingIds:
    """A prompt with its answer, ready to train on.

    Attributes:
        ids: prompt, answer and end token.
        labels: as ``ids`` over the answer and its end token, ``IGNORED`` over the prompt; the same length.
        ended: the last supervised token ends generation.
    """

    ids: list[int]
    labels: list[int]
    ended: bool

    @property
    def supervised(self) -> int:
        """Number of answer tokens that are learnt from, the end token not counted."""
        return sum(label != IGNORED for label in self.labels) - int(self.ended)


class Renderer:
    """Renders prompts for one tokenizer. Safe to share between threads.

    Args:
        tokenizer: a Hugging Face tokenizer.
        end_ids: ids that end generation; the tokenizer's own end token is always among them.
    """

    def __init__(self, tokenizer: Any, *, end_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys([*own, *map(int, end_ids)]))
        if not self.end_ids:
            raise ConfigError(
                "the tokenizer has no end token, so answers would never end; set tokenizer.eos_token and save it"
            )
        self.template: str = PLAIN_TEMPLATE
        if tokenizer.chat_template:
            self.template = tokenizer.get_chat_template()
        else:
            logger.info("the tokenizer has no chat template; using 'Question: ... Answer: ...'")
        self._takes_documents = "documents" in self.template
        added = tokenizer.added_tokens_decoder.values()
        special = {t.content for t in added if t.special} | set(tokenizer.all_special_tokens)
        markers = special | set(MARKER.findall(self.template))
        markers |= {t.content for t in added if t.content in self.template}
        self._in_answers = pattern_of(special | set(MARKER.findall(self.template)))
        self._in_prompts = pattern_of(markers)
        # A fast tokenizer keeps settings of the last call, so two threads must not be inside it at once.
        self._lock = threading.Lock()

    def escape(self, text: str) -> str:
        """Break every special token and role marker in ``text``; other text comes back as it was."""
        return break_tokens(self._in_prompts, text)

    def text(self, prompt: Prompt, answer: str | None = None) -> str:
        """The rendered conversation: up to where the answer starts, or with the answer and its end.

        Raises:
            ConfigError: if the chat template fails.
        """
        said = tuple((role, self.escape(text)) for role, text in prompt.turns)
        safe = replace(prompt, question=self.escape(prompt.question), turns=said)
        if prompt.passages is not None:
            safe = replace(
                safe,
                passages=tuple(
                    replace(
                        p,
                        text=self.escape(p.text),
                        metadata={k: self.escape(str(v)) for k, v in p.metadata.items() if k in ("title", "source")},
                        id=self.escape(p.id),
                    )
                    for p in prompt.passages
                ),
            )
        if self._takes_documents:
            turns, documents = prompts.messages(replace(safe, passages=None)), prompts.documents(safe)
        else:
            turns, documents = prompts.messages(safe), None
        if answer is not None:
            turns.append({"role": "assistant", "content": break_tokens(self._in_answers, answer)})
        try:
            return self._apply(turns, documents, answer is None)
        except TemplateError as error:
            if turns[0]["role"] != "system":
                raise ConfigError(f"the chat template failed: {error}") from error
        # Some templates refuse a system message; their models read the same words in the user's turn.
        head, user, *rest = turns
        user = {"role": "user", "content": f"{head['content']}\n\n{user['content']}"}
        try:
            return self._apply([user, *rest], documents, answer is None)
        except TemplateError as error:
            raise ConfigError(f"the chat template failed: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text; nothing is added."""
        with self._lock:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        with self._lock:
            return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def render(self, prompt: Prompt, *, limit: int | None = None) -> list[int]:
        """Ids of the prompt, up to where the answer starts.

        Args:
            prompt: what to ask.
            limit: at most so many tokens; passages are dropped from the end until the prompt fits.

        Raises:
            DataError: if the question alone does not fit.
        """
        ids = self.encode(self.text(prompt))
        if limit is None or len(ids) <= limit:
            return ids
        kept = list(prompt.passages or ())
        while kept and len(ids) > limit:
            kept.pop()
            ids = self.encode(self.text(replace(prompt, passages=tuple(kept))))
        if len(ids) > limit:
            raise DataError(
                f"the question takes {len(ids):,} tokens and the model has room for {limit:,}; shorten it, "
                "lower max_new_tokens, or take a base with a longer context"
            )
        logger.info("%d of %d passages fit into %d tokens", len(kept), len(prompt.passages or ()), limit)
        return ids

    def render_training(self, prompt: Prompt, answer: str) -> TrainingIds:
        """Ids and labels of a prompt with its answer; the loss is on the answer and its end token alone.

        The prompt's ids are exactly those of ``render``, so what is trained is what will be asked.

        Raises:
            ConfigError: if the template renders the prompt differently once an answer follows.
        """
        start, whole = self.text(prompt), self.text(prompt, answer)
        if not whole.startswith(start):
            at = next((i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), 0)
            raise ConfigError(
                "the chat template renders a prompt differently when an answer follows, so training would not "
                f"match answering: {start[at : at + 40]!r} became {whole[at : at + 40]!r}; use a template whose "
                "generation prompt is a prefix of the conversation"
            )
        head, tail = self.encode(start), self.encode(whole[len(start) :])
        end = next((i for i, token in enumerate(tail) if token in self.end_ids), None)
        # What a template writes after the end token (a line break) is never generated, so never trained.
        tail = [*tail, self.end_ids[0]] if end is None else tail[: end + 1]
        return TrainingIds(head + tail, [IGNORED] * len(head) + tail, ended=True)

    def _apply(self, turns: list[dict[str, str]], documents: list[dict[str, str]] | None, open_end: bool) -> str:
        with self._lock:
            return str(
                self.tokenizer.apply_chat_template(
                    turns,
                    documents=documents,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=open_end,
                    enable_thinking=False,  # asked for by name in some templates, unknown to the others
                )
            )
