"""Callbacks at the points of the run plan, on one rank and on two; stopping early; the best one."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline_local import (
    BestCheckpoint,
    Callback,
    EarlyStopping,
    UserError,
    fit,
    load_config,
    train,
)
from pipeline_local.training.callbacks import last_score, listed

ROOT = Path(__file__).parents[2]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def points(count):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(1) > 0).long()


def fitted(folder, *callbacks, stages=1, train=None, **settings):
    train = {"steps": 6, "evaluate_every": 2, "log_every": 3, **(train or {})}
    return fit(
        network(),
        points(64),
        points(16),
        modules=2,
        stages=stages,
        batch_size=16,
        head={"name": "linear"},
        parallel={"threads": 1},
        callbacks=callbacks,
        run_dir=folder,
        train=train,
        **settings,
    )


class Copies(Callback):
    """What `Run.state` gives at the end; a copy may be changed."""

    def on_start(self, run, step):
        for value in run.state().values():
            value.fill_(float("nan"))

    def on_end(self, run, facts):
        self.found = run.state()


def test_the_state_has_the_networks_own_names(tmp_path):
    model, copies = network(), Copies()
    settings = {"modules": 2, "head": {"name": "linear"}, "train": {"steps": 3}, "batch_size": 16}
    fit(
        model,
        points(64),
        points(16),
        callbacks=[copies],
        run_dir=tmp_path / "run",
        parallel={"threads": 1},
        **settings,
    )
    trained = model.state_dict()
    assert copies.found.keys() == trained.keys()
    assert all(torch.equal(copies.found[name], value) for name, value in trained.items())


class Witness(Callback):
    """Writes each call as a line into the run folder, one file per rank."""

    def _note(self, run, *words):
        with (run.folder / f"calls-{run.rank}").open("a") as file:
            print(*words, file=file)

    def on_start(self, run, step):
        self._note(run, "start", step)

    def on_step(self, run, step):
        self._note(run, "step", step)

    def on_log(self, run, facts):
        self._note(run, "log", facts["step"], *sorted(facts["modules"]))

    def on_evaluation(self, run, step, scores):
        self._note(run, "evaluation", step, *sorted(scores))

    def on_checkpoint(self, run, step):
        self._note(run, "checkpoint", step)

    def on_end(self, run, facts):
        self._note(run, "end", facts["steps"], "accuracy" in facts)


def lines(numbers, whole):
    return [
        "start 0",
        *("step 1", "step 2", f"evaluation 2 {numbers}"),
        *("step 3", f"log 3 {numbers}", "step 4", f"evaluation 4 {numbers}", "checkpoint 4"),
        *("step 5", f"log 6 {numbers}", "step 6", f"evaluation 6 {numbers}", "checkpoint 6"),
        f"end 6 {whole}",
    ]


def called(folder, rank):
    return (folder / f"calls-{rank}").read_text().splitlines()


def test_every_point_of_the_run_plan(tmp_path):
    fitted(tmp_path / "run", Witness(), checkpoint={"every_steps": 4})
    assert sorted(called(tmp_path / "run", 0)) == sorted(lines("1 2", True))
    resumed = {"steps": 7, "evaluate_every": 2}
    fitted(tmp_path / "run", Witness(), train=resumed, resume=True)
    assert "start 6" in called(tmp_path / "run", 0)


class StopsOnTheFirstRank(Callback):
    """Any rank may stop all."""

    def on_step(self, run, step):
        if step == 3 and run.rank == 0:
            run.stop()


def test_on_two_ranks_each_has_its_own_modules_and_all_stop_together(tmp_path, forked_launcher):
    summary = fitted(
        tmp_path / "run", Witness(), StopsOnTheFirstRank(), stages=2, train={"steps": 500}
    )
    first, second = (called(tmp_path / "run", rank) for rank in (0, 1))
    assert "log 3 1" in first
    assert "log 3 2" in second
    steps = [sum(line.startswith("step") for line in calls) for calls in (first, second)]
    assert steps == [summary["steps"]] * 2
    assert 3 <= summary["steps"] < 500
    assert (first[-1], second[-1]) == (f"end {steps[0]} True",) * 2
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / f"step-{steps[0]:08d}" / "module-002.safetensors").is_file()


def test_early_stopping(tmp_path):
    """Nothing is learned with a rate of nearly nothing."""
    summary = fitted(tmp_path / "run", EarlyStopping(2), train={"steps": 100}, lr=1e-12)
    # the first evaluation, two without improvement, and the step that is about to begin
    assert summary["steps"] == 7


class StopsAtOnce(Callback):
    def on_start(self, run, step):
        run.stop()


def test_a_stop_before_any_evaluation(tmp_path):
    """Then there are no scores; in a resumed run those of before count."""
    summary = fitted(tmp_path / "new", StopsAtOnce(), lr=1e-12)
    assert summary["steps"] == 1
    assert "accuracy" not in summary
    first = fitted(tmp_path / "run", lr=1e-12)
    more = {"train": {"steps": 9}, "resume": True, "lr": 1e-12}
    second = fitted(tmp_path / "run", StopsAtOnce(), **more)
    assert (second["steps"], second["accuracy"]) == (7, first["accuracy"])


def test_a_resumed_run_stops_early_where_one_in_one_part_does(tmp_path):
    """The rate is nearly nothing, so the evaluation after step 2 is the best."""
    fitted(tmp_path / "run", EarlyStopping(3), train={"steps": 4}, lr=1e-12)
    train = {"steps": 100}
    summary = fitted(tmp_path / "run", EarlyStopping(3), train=train, resume=True, lr=1e-12)
    assert summary["steps"] == 9, "the evaluation after step 8 is the third without improvement"
    again = fitted(tmp_path / "run", EarlyStopping(3), train=train, resume=True, lr=1e-12)
    assert again["steps"] == 10, "the step that is about to begin"


def test_early_stopping_remembers_the_life_it_goes_on_with(tmp_path):
    """Not what came after the checkpoint to which a run has gone back; null is no number."""
    lives = [(2, 0.5), (4, None), (6, 0.9), (4, 0.5), (6, 0.6), (8, 0.7), (10, 0.8)]
    lines = [
        {"event": "test", "step": step, "time": time, "modules": {"2": {"accuracy": score}}}
        for time, (step, score) in enumerate(lives)
    ]
    (tmp_path / "metrics").mkdir()
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "metrics" / "stage-1.jsonl").write_text(text)
    callback = EarlyStopping(2)
    callback.on_start(run := Told(tmp_path), 8)
    assert evaluations(run, callback, [0.7, 0.7, 0.7]) == 2
    anew = Told(tmp_path)
    callback.on_start(anew, 0)
    assert evaluations(anew, callback, [0.1, 0.1, 0.1]) == 3
    callback.on_start(stopped := Told(tmp_path), 4)
    assert not stopped.stopped
    EarlyStopping(1).on_start(stopped, 4)
    assert stopped.stopped


@dataclass
class Told:
    """A run as a callback sees it, with scores that a test says."""

    folder: Path = Path()
    better: str = "higher"
    is_last: bool = True
    replica: int = 0
    metric: str = "accuracy"
    modules: tuple = (SimpleNamespace(index=0), SimpleNamespace(index=1))
    stopped: bool = False
    kept: list = field(default_factory=list)
    plan: object = field(default_factory=lambda: SimpleNamespace(bare_evaluation=lambda done: None))

    def stop(self):
        self.stopped = True

    def keep(self, name, step):
        self.kept.append((name, step))


def evaluations(run, callback, scores):
    """How many it takes to stop."""
    for number, score in enumerate(scores, start=1):
        callback.on_evaluation(run, 2 * number, {"1": {"accuracy": 9.0}, "2": {"accuracy": score}})
        if run.stopped:
            return number
    return None


@pytest.mark.parametrize(
    ("better", "own", "scores", "number"),
    [
        ("higher", None, [1, 2, 3, 4, 5], None),
        ("higher", None, [1, 3, 2, 3], 4),  # as good is no better
        ("lower", None, [3, 2, 1, 1, 4], 5),
        ("lower", "higher", [1, 2, 3, 1, 1], 5),
        ("higher", "lower", [1, 2, 3], 3),
        ("higher", None, [float("nan"), float("nan"), 1], 2),
        ("higher", None, [1, float("nan"), 2, 0, float("nan")], 5),
    ],
)
def test_who_is_stopped_when(better, own, scores, number):
    run = Told(better=better)
    assert evaluations(run, EarlyStopping(2, own), scores) == number


def test_only_the_last_stage_decides_and_its_first_replica_writes(tmp_path):
    run = Told(tmp_path, is_last=False)
    for callback in (EarlyStopping(1), BestCheckpoint()):
        evaluations(run, callback, [3, 2, 1])
    assert not run.stopped
    evaluations(replica := Told(tmp_path, replica=1), BestCheckpoint(), [1, 2])
    assert not run.kept
    assert not replica.kept
    assert not [*tmp_path.iterdir()]
    assert last_score(run, {"2": {"accuracy": 0.5}}) == 0.5


def test_the_best_checkpoint(tmp_path):
    run = Told(tmp_path)
    evaluations(run, BestCheckpoint(), [2, 1, 3, 3])
    assert run.kept == [("best", 2), ("best", 6)]
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 6, "accuracy": 3}
    later = BestCheckpoint()
    later.on_start(run, 4)  # resumed from before it
    evaluations(Told(tmp_path), later, [1])
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "accuracy": 1}
    (tmp_path / "best.json").write_text('{"step": 6, "accuracy": 3}')
    later.on_start(run, 8)
    evaluations(run, later, [2, 4])
    assert run.kept[2:] == [("best", 4)]
    anew = BestCheckpoint()
    anew.on_start(run, 0)
    evaluations(run, anew, [1])
    assert run.kept[3:] == [("best", 2)]
    lowest = Told(tmp_path, better="lower")
    evaluations(lowest, BestCheckpoint(), [2, 1, 3])
    assert lowest.kept == [("best", 2), ("best", 4)]


def test_another_metric_has_another_best(tmp_path):
    """As has one of another name: evaluations before a run was resumed say nothing about it."""
    lines = [
        {"event": "test", "step": step, "time": step, "modules": {"2": {"accuracy": 0.5}}}
        for step in (2, 4, 6)
    ]
    (tmp_path / "metrics").mkdir()
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "metrics" / "stage-1.jsonl").write_text(text)
    (tmp_path / "best.json").write_text('{"step": 6, "accuracy": 0.5}')
    run = Told(tmp_path, metric="errors", better="lower")
    callbacks = [EarlyStopping(2), BestCheckpoint()]
    for callback in callbacks:
        callback.on_start(run, 6)
    assert not run.stopped
    for step in (8, 10, 12):
        assert not run.stopped
        for callback in callbacks:
            callback.on_evaluation(run, step, {"2": {"errors": 7.0}})
    assert run.stopped
    assert run.kept == [("best", 8)]


def test_an_evaluation_without_a_checkpoint_is_refused(tmp_path):
    """Before the first step."""
    with pytest.raises(UserError, match="no checkpoint follows the evaluation after step 2; give"):
        fitted(tmp_path / "run", Witness(), BestCheckpoint(), checkpoint={"every_steps": 4})
    assert called(tmp_path / "run", 0) == ["start 0"]
    assert fitted(tmp_path / "end", BestCheckpoint(), train={"evaluate_every": 6})["steps"] == 6


@pytest.mark.parametrize("made", [EarlyStopping, BestCheckpoint])
@pytest.mark.parametrize("better", ["max", "Higher", "", True, 1])
def test_which_scores_are_better_is_one_of_two_words(made, better):
    with pytest.raises(UserError, match=f"{made.__name__}: better must be .* got {better!r}; or"):
        made(better=better)


@pytest.mark.parametrize("patience", ["3", 0, -1, 1.5, True, None])
def test_patience_is_a_number_of_evaluations(patience):
    with pytest.raises(UserError, match=f"patience must be a whole number .* got {patience!r}; "):
        EarlyStopping(patience)


def test_callbacks_may_come_from_a_generator(tmp_path):
    fit(
        network(),
        points(64),
        points(16),
        modules=2,
        batch_size=16,
        head={"name": "linear"},
        parallel={"threads": 1},
        callbacks=(made() for made in [Witness]),
        run_dir=tmp_path / "run",
        train={"steps": 1},
    )
    assert called(tmp_path / "run", 0)[0] == "start 0"


@pytest.mark.parametrize("odd", [None, Callback, Callback(), 3, "none", [Callback()] * 2 + [print]])
def test_what_is_no_list_of_callbacks_is_refused(odd):
    with pytest.raises(UserError, match=r"callbacks: pass instances of Callback, got .*") as caught:
        train(load_config(ROOT / "configs" / "digits.yaml"), callbacks=odd)
    assert "\n" not in str(caught.value)


class Keeps(Callback):
    """Names checkpoints that are there, will be, are not, and never will be."""

    def on_evaluation(self, run, step, scores):
        if step == 4:
            run.keep("first", 2)
            run.keep("now", 4)
        for odd in (0, 3, 7, 8, -2, True, "4", 2.0):
            with pytest.raises(UserError, match=f"no checkpoint of step {odd!r}; name a step"):
                run.keep("odd", odd)


def test_only_checkpoints_that_are_there_are_kept(tmp_path):
    fitted(tmp_path / "run", Keeps(), train={"steps": 6}, checkpoint={"keep": 1})
    names = {path.name: path.read_text() for path in tmp_path.glob("run/checkpoints/*.step")}
    assert names == {"first.step": "2\n", "now.step": "4\n"}
    assert len([*tmp_path.glob("run/checkpoints/step-*")]) == 3


class Broken(Callback):
    """Fails on one rank."""

    def on_step(self, run, step):
        if step == 2 and run.rank == 1:
            raise KeyError("my own mistake")


def test_what_a_callback_raises_on_a_rank_is_said(tmp_path, forked_launcher):
    with pytest.raises(RuntimeError, match="exit code 1: KeyError: 'my own mistake', test_callba"):
        fitted(tmp_path / "run", Broken(), stages=2, train={"steps": 50})


def test_callbacks_are_instances():
    one = Callback()
    assert listed([one]) == listed(each for each in [one]) == (one,)
    with pytest.raises(UserError, match="callbacks: pass instances of Callback, got <class"):
        listed([Callback])
