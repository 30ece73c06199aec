"""The page: it is whole, it loads nothing, and nothing in it is taken for markup."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest

from pipeline_local.cli import main
from pipeline_local.errors import UserError
from pipeline_local.report import page
from pipeline_local.report.run import read
from tests.report.folders import cut_off, make_run
from tests.report.test_stages import PLAN


class Page(HTMLParser):
    """Its elements, its visible text and its figures."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.scripts, self._inside = [], "", [], ""
        self.feed(text)
        self.figures = json.loads(self.scripts[1])

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def handle_endtag(self, tag):
        self._inside = ""


@pytest.fixture
def runs(tmp_path):
    return read([make_run(tmp_path / name) for name in ("first", "sec<b>ond")])


def test_it_shows_everything(runs):
    shown = Page(page.html(runs[:1], [PLAN]))
    for text in ("first", "87.50%", "81.25%", "1000", "75.5 s", "1024 MiB", "finished, 8 steps"):
        assert text in shown.text
    for title in ("Training loss", "Discord", "Cosine", "Time per stage", "Timeline"):
        assert title in shown.text
    for text in ("batch_", "stage 0: layer0; linear", "Configuration", "Environment", "torch"):
        assert text in shown.text
    plots = [attributes for _, attributes in shown.elements if attributes.get("class") == "plot"]
    assert [int(plot["data-figure"]) for plot in plots] == list(range(len(shown.figures)))
    assert len(shown.figures) == 8


def test_it_loads_nothing(runs):
    text = page.html(runs, [PLAN, PLAN])
    shown = Page(text)
    loading = ("src", "href", "data", "action", "poster", "srcset")
    found = [value for _, kept in shown.elements for name, value in kept.items() if name in loading]
    assert found == ["data:,"], "no icon, so that none is asked for"
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    assert policy[1].startswith("default-src 'none';")
    assert "http" not in policy[1]
    assert "@import" not in text.partition("</style>")[0]


def test_names_are_text(runs):
    text = page.html(runs, [PLAN, PLAN])
    shown = Page(text)
    assert "sec<b>ond" in shown.text
    assert not [tag for tag, _ in shown.elements if tag == "b"]
    names = {trace["name"] for figure in shown.figures for trace in figure["data"]}
    assert "module 1, sec<b>ond" in names


def test_legends_are_printed(runs):
    shown = Page(page.html(runs, [PLAN, PLAN]))
    keys = {kept["data-key"] for _, kept in shown.elements if "data-key" in kept}
    used = {key for f in shown.figures for trace in f["data"] for key in trace["meta"]["keys"]}
    assert keys >= used - {"run:0"}, "a timeline's run is its title"
    assert "modules 1 | 2" in shown.text


def test_what_differs_comes_first(tmp_path):
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "b", {"train": {"seed": 3}})
    text = page.html(read([first, second]), [PLAN, PLAN])
    assert "What differs" in text
    assert text.index("seed") < text.index("All keys")


def test_what_the_reader_must_know(tmp_path):
    path = cut_off(make_run(tmp_path / "first"))
    other = make_run(tmp_path / "other")
    for file in (other / "metrics").iterdir():
        file.write_text(file.read_text().replace("accuracy", "dice"))
    (other / "data.json").unlink()
    runs = read([path, other])
    runs[1].folder.add_start(4, 2, "cpu")
    shown = Page(page.html(read([path, other]), [PLAN, "it is gone"])).text
    assert "not finished: step 8 of 8" in shown
    assert "different tasks" in shown
    assert "There is no plan of other to compare with: it is gone" in shown
    assert "other was continued after step 4" in shown


def test_a_run_that_has_only_begun(tmp_path):
    path = cut_off(make_run(tmp_path / "first"))
    for part in ("metrics", "trace"):
        for file in (path / part).iterdir():
            file.unlink()
    (path / "environment.json").unlink()
    shown = Page(page.html(read([path]), ["no plan"]))
    assert shown.figures == []
    assert "first has not logged a step yet" in shown.text
    assert "model." in shown.text


def test_the_command(tmp_path, capsys):
    path = make_run(tmp_path / "first")
    assert main(["report", str(path)]) == 0
    assert f"wrote {path / 'report.html'}" in capsys.readouterr().out
    figures = Page((path / "report.html").read_text()).figures
    assert len(figures) == 8, "the plan is there, too"
    assert main(["report", str(path)]) == 2
    assert "files are never overwritten" in capsys.readouterr().err
    assert main(["report", str(path), "--output", str(tmp_path / "new" / "page.html")]) == 0


def test_bad_input(tmp_path, monkeypatch):
    path = make_run(tmp_path / "first")
    with pytest.raises(UserError, match="is not a run folder"):
        page.write([tmp_path])
    with pytest.raises(UserError, match="at most 6 runs can be told apart, got 7"):
        page.write([path] * 7)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UserError, match=r'needs plotly, .*pip install "pipeline-local\[report\]"'):
        page.write([path])
