"""The report that people show around, and the advice drawn from it.

``report_router`` measures a router on outcomes, finds the topics of the questions and what to do next;
``RouterReport.to_html`` makes one page of it that needs no network.
"""

from ragft_plugin.reporting.advice import Advice, advise
from ragft_plugin.reporting.comparison import ComparisonRow, compare
from ragft_plugin.reporting.router_report import RouterReport, report_router
from ragft_plugin.reporting.suggestions import suggest_rows
from ragft_plugin.reporting.topics import Topic, find_topics, group_topics

__all__ = [
    "Advice",
    "ComparisonRow",
    "RouterReport",
    "Topic",
    "advise",
    "compare",
    "find_topics",
    "group_topics",
    "report_router",
    "suggest_rows",
]
