"""Errors. Each names the thing, what came, what was expected, and the cure.

RagftError
  + ConfigError            ragft.yaml, options, unknown arms
  + DataError              questions, documents, training rows, outcomes  (file and line)
  + StoreError             knowledge base: damaged, locked, of another encoder
  + AdapterError           adapter does not fit its base, is damaged or badly named
  + RouterError            router file damaged, not fitted, or its fingerprints do not fit
  + GenerationError        a generator failed
      + OverloadedError    the worker's queue is full
      + PartialAnswerError it failed after the first token; carries the text so far
  + MissingExtraError      (also ImportError) names the pip command
"""

from __future__ import annotations


class RagftError(Exception):
    """Root of all errors of this package."""


class ConfigError(RagftError, ValueError):
    """A setting is wrong."""


class DataError(RagftError, ValueError):
    """Input data is wrong. The message starts with ``path:line`` where there is one."""

    def __init__(self, message: str, *, path: str | None = None, line: int | None = None) -> None:
        self.path = path
        self.line = line
        place = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(place + message)


class StoreError(RagftError):
    """A knowledge base cannot be used as asked."""


class AdapterError(RagftError):
    """An adapter cannot be used as asked."""


class RouterError(RagftError):
    """A router cannot be used as asked."""


class GenerationError(RagftError):
    """A generator failed."""


class OverloadedError(GenerationError):
    """The queue of a worker is full; try again later or raise its bound."""


class PartialAnswerError(GenerationError):
    """Generation failed after the first token.

    Attributes:
        text: what had been emitted.
    """

    def __init__(self, message: str, *, text: str) -> None:
        self.text = text
        super().__init__(f"{message} (after {len(text)} characters)")


class MissingExtraError(RagftError, ImportError):
    """A folder of the package needs an extra that is not installed.

    Attributes:
        extra: the extra's name.
    """

    def __init__(self, package: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{package} is not installed. Install it with: pip install 'ragft-plugin[{extra}]'")
