"""Prompts of nested modules under flat names.

LlamaIndex names the prompt of a module ``module:prompt`` and cannot update one that lies deeper, because a name with
two colons does not split in two. Here colons inside become slashes: ``rag:response_synthesizer/text_qa_template``.
"""

from __future__ import annotations

from llama_index.core.prompts.mixin import PromptDictType, PromptMixin


def flat(name: str) -> str:
    """A name without colons.

    Example:
        >>> flat("rag+adapter:legal")
        'rag+adapter/legal'
    """
    return name.replace(":", "/")


def flat_prompts(module: PromptMixin) -> PromptDictType:
    """All prompts of a module and of those below it, under flat names."""
    return {flat(name): prompt for name, prompt in module.get_prompts().items()}


def update_flat_prompts(module: PromptMixin, prompts: PromptDictType) -> None:
    """Replace prompts that ``flat_prompts`` named; other names are ignored."""
    module.update_prompts({name: prompts[flat(name)] for name in module.get_prompts() if flat(name) in prompts})
