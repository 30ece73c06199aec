"""The failure suite: whatever befalls a run, going on gives the bytes of a run that nothing befell.

Real processes are killed, stopped and signalled at random moments, also while they write, and the
newest checkpoint is cut or altered, again and again, until the run is complete; each attempt is on
another number of stages. Everything is drawn from a seed, which is printed with all faults when a
round fails. Other rounds, and how many faults of which kind they have survived:

    PIPELINE_LOCAL_SEED=1000 bash launch/test.sh -m long -s tests/test_failures.py
"""

import os
import signal
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from pipeline_local.configfile import configfile
from pipeline_local.errors import EXIT_NEIGHBOUR_LOST, EXIT_STALLED, EXIT_STOPPED, EXIT_USER_ERROR
from tests.faults import KINDS, Fault, damage
from tests.forked import Forked
from tests.ranks.test_launcher import OWN, Run

ROOT = Path(__file__).parent.parent
SEED = int(os.environ.get("PIPELINE_LOCAL_SEED", "2024"))
MODULES = 3
STEPS = 24
MOST_ATTEMPTS = 6
"""The last one is let through, or a round might never end."""
EXPECTED = {0, EXIT_NEIGHBOUR_LOST, EXIT_STALLED, EXIT_STOPPED, -9, -10, -15}
"""Never 1, an error of the program, nor 2, a mistake of the user's."""

MLP = {"model": {"name": "mlp", "hidden": 8, "depth": 6}}
RESNET = {"model": {"name": "resnet20", "width": 2}, "head": {"name": "linear"}}
NETWORKS = {
    "mlp": MLP,
    "resnet": RESNET,
    "mlp, both directions": {
        **MLP,
        "reconcile": {"weight": 0.1, "every": 2, "direction": "both"},
    },
    "resnet, both directions, microbatches, AdamW": {
        **RESNET,
        "reconcile": {"weight": 0.1, "every": 1, "direction": "both"},
        "train": {"microbatches": 2},
        "optimizer": {"name": "adamw", "lr": 0.001},
    },
    "mlp, replicas": {**MLP, "train": {"microbatches": 2}},
}
REPLICAS = {1: [1], 2: [2], 3: [1, 2]}
"""Of each stage, by the number of ranks."""


def write_config(folder, network):
    tree = {
        "modules": {"count": MODULES},
        "data": {"name": "digits", "batch_size": 16, "limit": 256, "augment": "standard"},
        "checkpoint": {"every_steps": 3, "keep": 3},
        "parallel": {"threads": 1, "timeout": 3},
        "run": {"dir": str(folder / "run")},
        **NETWORKS[network],
    }
    tree["train"] = {"steps": STEPS, "log_every": 4, "evaluate_every": 10} | tree.get("train", {})
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(configfile.dump(configfile.parse(tree)))
    return path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The bytes of a run that nothing befalls, by network."""
    found = {}

    def get(network):
        if network not in found:
            folder = tmp_path_factory.mktemp("uninterrupted")
            run = Forked(1, ["train", str(write_config(folder, network))], folder / "output")
            assert run.ends() == [0], run.output.read_text()
            found[network] = last_checkpoint(folder / "run", STEPS)
            assert len(found[network]) == MODULES
        return found[network]

    return get


def last_checkpoint(run, step):
    files = (run / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")
    return {path.name: path.read_bytes() for path in files}


class Round:
    """One run and all that befalls it.

    Args:
        folder: gets the run and what it prints.
        seed: all faults are drawn from it.
    """

    def __init__(self, folder, seed):
        self.random = Random(seed)
        self.network = self.random.choice(list(NETWORKS))
        self.folder = folder
        self.config = write_config(folder, self.network)
        self.told = [f"PIPELINE_LOCAL_SEED={seed}, {self.network}"]
        self.survived = Counter()

    def go(self, uninterrupted):
        """Until the run is complete; then it has the bytes of `uninterrupted`."""
        for attempt in range(MOST_ATTEMPTS):
            if self._attempt(last=attempt == MOST_ATTEMPTS - 1):
                break
            if self.random.random() < 0.4:
                self._damage()
        assert (self.folder / "run" / "summary.json").is_file(), self
        found, expected = last_checkpoint(self.folder / "run", STEPS), uninterrupted(self.network)
        assert found.keys() == expected.keys(), self
        assert [name for name in found if found[name] != expected[name]] == [], self
        assert "Traceback" not in self._output(), self

    def _attempt(self, last):
        """Start, or go on, and be hit once. Returns whether the run has become complete."""
        ranks = self.random.randint(1, MODULES)
        start = max((int(path.parent.name[5:]) for path in self._files()), default=0)
        fault = Fault.draw(self.random, ranks, min(start, STEPS - 1), STEPS)
        arguments = ["train", str(self.config), "run.resume=true"]
        if self.network.endswith("replicas"):
            arguments.append(f"parallel.replicas={REPLICAS[ranks]}")
        output = self.folder / "output"
        self.printed = len(self._output())
        run = Forked(ranks, arguments, output, (lambda rank: None) if last else fault.prepare)
        try:
            if not last:
                fault.strike(run)
            codes = run.ends()
        finally:
            run.close()
        self.told.append(f"{ranks} stages: {'nothing' if last else fault}: exit codes {codes}")
        assert set(codes) <= EXPECTED, self
        stopped_alone = ranks == 1 and "SIGSTOP" in fault.kind
        assert not run.outlived or stopped_alone or self._launcher_in_charge(fault), self
        complete = codes == [0] * ranks
        assert complete or not last, self
        self.survived[fault.kind] += not complete
        return complete

    def _launcher_in_charge(self, fault):
        """Nobody watches before the ranks have met; soon after that they announce the run."""
        return fault.moment == "moment" and "threads each" not in self._output()[self.printed :]

    def _damage(self):
        files = self._files()
        newest = [path for path in files if path.parent == files[-1].parent]
        if newest:
            path = self.random.choice(newest)
            kind = damage(path, self.random)
            self.told.append(f"{kind}: {path.parent.name}/{path.name}")
            self.survived[kind] += 1

    def _files(self):
        return sorted((self.folder / "run" / "checkpoints").glob("step-????????/*.safetensors"))

    def _output(self):
        output = self.folder / "output"
        return output.read_text() if output.exists() else ""

    def __repr__(self):
        """All that is needed to see what happened, in the message of a failed assertion."""
        return "\n".join(["", *self.told, self._output()])


@pytest.mark.parametrize(
    "seed",
    [
        *(pytest.param(seed, marks=pytest.mark.long) for seed in (SEED, SEED + 1)),
        *(SEED + 2, SEED + 3),
    ],
)
def test_a_round(seed, tmp_path, uninterrupted):
    Round(tmp_path, seed).go(uninterrupted)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_rounds(tmp_path, uninterrupted):
    survived, rounds = Counter(), 60
    for seed in range(SEED, SEED + rounds):
        one = Round(tmp_path / str(seed), seed)
        one.go(uninterrupted)
        survived += one.survived
        print("\n".join(one.told), flush=True)
    for kind, count in survived.most_common():
        print(f"{count:4} {kind}")
    print(f"{survived.total():4} faults in {rounds} rounds")
    assert set(KINDS) <= set(survived), "each kind has struck at least once"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_real_command_line(tmp_path):
    """Any of its processes is hit: launcher, ranks, loaders, and what Python starts beside them."""
    random, told = Random(SEED), [f"PIPELINE_LOCAL_SEED={SEED}"]
    settings = ["data.workers=1", "train.steps=400", "checkpoint.every_steps=20", "run.resume=true"]
    for last in (*[False] * 6, True):
        run = Run(tmp_path, *settings, f"parallel.stages={random.randint(1, 3)}", launcher=OWN)
        try:
            hit = None if last else hit_any(run, random)
            code = run.process.wait(300)
            run.leaves_nothing()
        finally:
            run.close()
        told.append(f"{hit or 'nothing'}: exit code {code}")
        assert code != EXIT_USER_ERROR, (told, run.errors.read_text())
    print("\n".join(told))
    assert code == 0, (told, run.errors.read_text())
    alone = tmp_path / "alone"
    alone.mkdir()
    assert Run(alone, *settings, "parallel.stages=1", launcher=OWN).process.wait(300) == 0
    digits = Path("runs", "digits")
    found, expected = (last_checkpoint(f / digits, 400) for f in (tmp_path, alone))
    assert len(found) == 4
    assert found == expected, told


def hit_any(run, random):
    """Signal one of its processes at a random moment; says which."""
    seconds, number = random.uniform(3, 15), random.choice([signal.SIGKILL, signal.SIGTERM])
    with suppress(subprocess.TimeoutExpired):
        run.process.wait(seconds)
    processes = run.processes()
    if not processes:
        return None
    victim = random.choice(sorted(processes))
    rank = processes[victim]
    what = (
        "launcher"
        if victim == run.process.pid
        else f"rank {rank}"
        if rank is not None
        else "another"
    )
    os.kill(victim, number)
    return f"{number.name} to {what} after {seconds:.1f} s"
