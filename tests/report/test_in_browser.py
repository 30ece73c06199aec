"""The page in a real browser: desktop and phone, light and dark."""

import pytest

from pipeline_local.report import page
from pipeline_local.report.run import read
from tests.report.browser import MISSING, browser
from tests.report.folders import make_run
from tests.report.test_stages import PLAN

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(MISSING, reason="chromium and chromedriver are not installed"),
]

NAME = "a-name-without-a-place-to-break-" * 4
DARK = {"name": "prefers-color-scheme", "value": "dark"}
TOO_WIDE = """
    const wide = document.documentElement.clientWidth;
    return [...document.querySelectorAll('body *')]
        .filter((one) => one.getBoundingClientRect().right > wide + 1)
        .map((one) => one.outerHTML.slice(0, 80));
"""
EMPTY = """
    return [...document.querySelectorAll('.plot')]
        .filter((plot) => !plot.querySelector('.trace path, .trace .point, .points path'))
        .map((plot) => plot.getAttribute('aria-label'));
"""
CONTRAST = """
    const light = (css) => {
        const [r, g, b] = css.match(/[\\d.]+/g).map((v) => {
            const part = v / 255;
            return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const card = light(getComputedStyle(document.querySelector('.chart')).backgroundColor);
    return [...document.querySelectorAll('.plot text, .chart h2, .chart p, dd, td')].map((one) => {
        const style = getComputedStyle(one);
        const own = light(one.tagName === 'text' ? style.fill : style.color);
        return (Math.max(own, card) + 0.05) / (Math.min(own, card) + 0.05);
    }).reduce((a, b) => Math.min(a, b));
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Two runs, one with a long name, in a page in a browser."""
    folder = tmp_path_factory.mktemp("report")
    runs = read([make_run(folder / name) for name in ("first", NAME)])
    path = folder / "page.html"
    path.write_text(page.html(runs, [PLAN, PLAN]))
    with browser(folder / "profile") as opened:
        yield opened, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
def test_it_is_drawn_whole_and_alone(shown, width, height, scheme):
    opened, path = shown
    opened.open(path, width, height, scheme)
    assert opened.complaints() == []
    assert opened.requests() == [path.as_uri()]
    assert opened.run("return innerWidth") == width
    assert opened.run("const e = document.documentElement; return e.scrollWidth <= e.clientWidth")
    assert opened.run(TOO_WIDE) == []
    assert opened.run(EMPTY) == []
    assert opened.run("return document.querySelectorAll('.plot .main-svg').length") > 0
    assert opened.run(CONTRAST) > 4.5, "WCAG AA"
    dark = opened.run("return getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 22)"
    assert dark == (scheme == "dark")


def test_plots_follow_a_change_of_the_scheme(shown):
    opened, path = shown
    opened.open(path, 1400, 900, "light")
    opened.cdp("Emulation.setEmulatedMedia", features=[DARK])
    opened.wait(
        "return getComputedStyle(document.querySelector('.xtick text')).fill.includes('232')"
    )
    assert opened.run(CONTRAST) > 4.5
    opened.cdp("Emulation.setEmulatedMedia", media="print", features=[DARK])
    opened.wait(
        "return getComputedStyle(document.querySelector('.xtick text')).fill.includes('(0')"
    )
    assert opened.run(CONTRAST) > 4.5, "paper is white"


def test_legends_and_the_axis_act(shown):
    opened, path = shown
    opened.open(path, 1400, 900, "light")
    curves = "document.querySelectorAll('.chart:first-child .scatterlayer .trace').length"
    assert opened.run(f"return {curves}") == 4
    opened.run("document.querySelector('.chart [data-key=\"run:1\"]').click()")
    opened.wait(f"return {curves} === 2")
    pressed = "return document.querySelector('.chart [data-key=\"run:1\"]').ariaPressed"
    assert opened.run(pressed) == "false"
    title = "document.querySelector('.plot .xtitle').textContent"
    assert opened.run(f"return {title}") == "step"
    opened.run("document.querySelector('input[value=minute]').click()")
    opened.wait(f"return {title} === 'minute'")
    assert opened.complaints() == []
