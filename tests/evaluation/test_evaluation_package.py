"""The folder's surface: what it offers, and what it does not load."""

import subprocess
import sys

import pytest

import ragft_plugin.evaluation as evaluation


def test_every_public_name_is_there_and_the_list_is_sorted():
    assert sorted(evaluation.__all__) == sorted(evaluation._HOME)
    assert dir(evaluation) == sorted(evaluation.__all__)
    for name in evaluation.__all__:
        assert getattr(evaluation, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Outcum'"):
        _ = evaluation.Outcum


def test_importing_it_loads_nothing_heavy_and_reading_outcomes_needs_no_database():
    code = (
        "import sys, ragft_plugin.evaluation as e; assert 'sqlalchemy' not in sys.modules; "
        "assert 'numpy' not in sys.modules; e.read_outcomes; e.build_report; e.doubly_robust; "
        "print([m for m in ('sqlalchemy', 'sklearn', 'scipy', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
