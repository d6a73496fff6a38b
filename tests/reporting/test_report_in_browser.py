"""The report in a real browser: drawn, in light and dark, on paper, without a word on its console.

Needs Chromium (`apt-get install chromium`); run with: pytest -m browser
"""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from ragft_plugin.evaluation.outcomes import Outcome, Outcomes
from ragft_plugin.reporting import report_router
from ragft_plugin.routing import Router

pytestmark = pytest.mark.browser

PREFER = {"dark": 0, "light": 1}  # Blink's preferredColorScheme


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(240):
        old = i % 2
        chance = {"base": 0.2, "rag": 0.9 - 0.6 * old, "adapter:faq": 0.3 + 0.6 * old}
        rows.append(
            Outcome(
                query_id=str(i),
                query=f"{'How is the form for' if old else 'What is the price of'} part {i}? <script>alert(1)</script>",
                group="forms" if old else "prices",
                reward={arm: float(rng.random() < p) for arm, p in chance.items()},
                cost={"base": 0.0, "rag": 1.0, "adapter:faq": 0.0},
                answers={arm: f"answer of {arm}" for arm in chance},
                passages=[{"id": str(i), "text": "A passage. " * 9}],
            )
        )
    log = Outcomes.from_rows(rows)
    router = Router().fit(Outcomes.from_rows(rows[:120], log.arms))
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_router(router, Outcomes.from_rows(rows[120:], log.arms)).to_html())
    return path


def chromium(page, *options):
    """Run the browser; its standard error holds what the page said on its console."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "there is no Chromium; install it: apt-get install chromium"
    call = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    done = subprocess.run([*call, profile, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, said


def picture(page, scheme, width=1100):
    path = page.parent / f"{scheme}-{width}.png"
    _, said = chromium(
        page,
        f"--screenshot={path}",
        f"--window-size={width},2400",
        f"--blink-settings=preferredColorScheme={PREFER[scheme]}",
    )
    assert said == []
    return np.asarray(Image.open(path).convert("RGB"), dtype=float)


def test_the_page_is_drawn_and_silent(page):
    dom, said = chromium(page, "--dump-dom")
    assert said == []
    assert "Where each arm wins" in dom
    assert dom.count("<svg") == 2


def test_light_is_light_and_dark_is_dark_and_both_have_the_router_in_blue(page):
    light, dark = picture(page, "light"), picture(page, "dark")
    assert np.median(light) == 255
    assert np.median(dark) < 40
    for drawn in (light, dark):
        blue = (drawn[..., 2] - drawn[..., 0] > 80).sum()
        assert blue > 500  # pixels of lines, dots and bars
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50  # text is there, not a blank page


def test_nothing_sticks_out_to_the_right_on_a_small_screen(page):
    drawn = picture(page, "light", width=500)
    # The last columns hold the margin of the page and nothing else.
    assert (drawn[:, -8:] > 200).all()


def test_it_prints_on_paper(page):
    path = page.parent / "page.pdf"
    _, said = chromium(page, f"--print-to-pdf={path}")
    assert said == []
    assert path.read_bytes().startswith(b"%PDF")
