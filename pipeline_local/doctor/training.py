"""The check that trains: two ranks, the digits that scikit-learn ships, two steps."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

import pipeline_local
from pipeline_local.doctor.finding import Finding, failed, passed

LIMIT_SECONDS = 300.0
"""Most of it is spent on loading torch, on slow disks for the first time."""
CONFIG = {
    "model": {"name": "mlp", "hidden": 16},
    "modules": {"count": 2},
    "head": {"name": "linear"},
    "reconcile": {"weight": 0.01},
    "data": {"name": "digits", "limit": 200, "batch_size": 50},
    "train": {"steps": 2},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "parallel": {"stages": 2, "threads": 1},
}
_OF_LAUNCHERS = (
    *("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_", "SLURM_", "PIPELINE_LOCAL_"),
)


def training() -> Iterator[Finding]:
    """Whether two ranks train, evaluate and save, by the package's own launcher."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pipeline_local-", ignore_cleanup_errors=True) as name:
        run = Path(name) / "run"
        try:
            done = subprocess.run(
                _command(Path(name) / "digits.yaml", run),
                env=_environment(),
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=LIMIT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            remedy = "check `interfaces` above, and that nothing else keeps the CPUs busy"
            yield failed(f"no end within {LIMIT_SECONDS:.0f} s", remedy)
            return
        complete = (run / "summary.json").is_file()
    seconds = time.monotonic() - begin
    if done.returncode == 0 and complete:
        yield passed(f"two ranks have trained and saved, in {seconds:.0f} s", seconds=seconds)
    else:
        found = f"exit code {done.returncode}: {_reason(done.stderr)}"
        yield failed(found, "run `pipeline-local train configs/digits.yaml` to see all of it")


def _command(config: Path, run: Path) -> list[str]:
    config.write_text(yaml.safe_dump(CONFIG | {"run": {"dir": str(run)}}))
    program = Path(pipeline_local.__file__).with_name("__main__.py")
    return [sys.executable, str(program), "train", str(config)]


def _environment() -> dict[str, str]:
    """That of this process, without what a launcher has set for it as a rank."""
    return {name: text for name, text in os.environ.items() if not name.startswith(_OF_LAUNCHERS)}


def _reason(errors: str) -> str:
    """The line that says why, of all that was printed."""
    lines = errors.strip().splitlines() or ["it says nothing"]
    return next((line for line in lines if "error: " in line), lines[-1])
