"""Decide, per question, whether to look it up, to ask the fine-tuned adapter, or both."""

__version__ = "0.1.0"
