"""What is advised, and on what grounds."""

from dataclasses import replace
from functools import partial

import pytest
import yaml

from pipeline_local import cli
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.placement.costs import LinkOptions
from pipeline_local.planning.advice import Situation, advice, draw, report
from pipeline_local.planning.alternatives import Alternative
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.simulation.scenario import Scenario

LOCAL = Alternative("local, p=4, m=4", "local", 4, 2**24, True, 0.0, 1.0, 0.0, 0.1, 1.0)
TREE = {
    "model": {"name": "mlp", "hidden": 64, "depth": 4},
    "data": {"name": "digits", "batch_size": 32},
    "head": {"name": "linear"},
    "train": {"steps": 8},
    "optimizer": {"lr": 0.1},
    "parallel": {"threads": 1, "memory": 1},
}


def rival(method, speed, fits=True):
    name = f"{method}, p=4, m=4"
    return replace(LOCAL, name=name, method=method, speed=speed, fits=fits, peak=2**25)


@pytest.mark.parametrize(
    ("rows", "first"),
    [
        ([LOCAL, rival("DDP", 1.2), rival("1F1B", 0.7)], "Advice: DDP; use torch's Distributed"),
        ([LOCAL, rival("DDP", 0.95)], "Advice: DDP; "),  # too little is gained by local gradients
        ([LOCAL, rival("DDP", 2.0, False), rival("1F1B", 1.0)], "Advice: 1F1B; use torch.dist"),
        ([LOCAL, rival("DDP", 0.5), rival("1F1B", 0.6)], "Advice: local learning; use pipeline"),
        ([LOCAL, rival("1F1B", 2.0, False)], "Advice: local learning; use pipeline-local train"),
        ([replace(LOCAL, fits=False), rival("1F1B", 0.2)], "Advice: 1F1B; "),
        (
            [replace(LOCAL, fits=False), rival("1F1B", 0.2, False)],
            "Advice: none of these fits on",
        ),
        ([LOCAL, rival("DDP", 0.5, None)], "Advice: local learning; "),
    ],
)
def test_the_fastest_exact_method_unless_local_gains_enough(rows, first):
    lines = list(advice(rows, 4))
    assert lines[0].startswith(first)
    assert any("FSDP" in line for line in lines) == (
        rows[0].fits is False or not any(r.method == "DDP" and r.fits is not False for r in rows)
    )


def test_the_gain_is_told():
    lines = list(advice([LOCAL, rival("DDP", 0.5), rival("1F1B", 0.4)], 4))
    assert lines[0].endswith("with parallel.stages=4 train.microbatches=4.")
    assert lines[1].startswith("It is 2.00 times as fast as DDP, the fastest exact method")
    assert lines[1].endswith("with 16.0 MiB per device to 32.0.")
    assert "not exact" in lines[2]


@pytest.mark.parametrize(
    ("situation", "line"),
    [
        (Situation(0), "--devices: at least 1, got 0"),
        (Situation(2, LinkOptions(latency=-1.0)), "--latency: seconds"),
        (Situation(2, LinkOptions(latency=float("nan"))), "--latency: seconds"),
        (Situation(2, LinkOptions(bandwidth=0.0)), "--bandwidth: bits per second"),
        (Situation(2, LinkOptions(-1.0, 0.0)), "--latency: seconds.*\n--bandwidth: bits per"),
    ],
)
def test_wrong_options(situation, line):
    with pytest.raises(UserError, match=line):
        situation.check()


@pytest.mark.parametrize("seconds", [0.0, 3600.0, -1.0, float("inf"), float("nan")])
def test_advice_and_simulation_take_the_same_links(seconds):
    link, config = LinkOptions(latency=seconds), configfile.parse(TREE)
    scenario = Scenario(("local",), (2,), link=link)
    for check in (Situation(2, link).check, partial(scenario.check, config)):
        if seconds in (0.0, 3600.0):
            check()
            continue
        with pytest.raises(ConfigError, match=r"^--latency: seconds, at least 0, got "):
            check()


def planned(link):
    config = configfile.parse(TREE).on_stages(2)
    drawn = draw(config, describe(config.data), link, RankInfo())
    return {one.method: one for one in drawn.alternatives if one.microbatches == 2}, drawn


def test_a_slow_link_is_simulated():
    """A second per message, which a pipeline waits for in every step; one device waits for none."""
    slow, drawn = planned(Situation(2, LinkOptions(latency=1.0)))
    assert slow["1F1B"].seconds > 2
    assert slow["BP"].seconds < 1
    text = "\n".join(report(drawn))
    assert text.splitlines()[0].startswith("| method | m | MiB per device | fits |")
    assert "Advice: BP; train on one device" in text
    assert text.splitlines()[-1].startswith("Costs are measured on ")


def test_a_profile_is_measured_here_and_not_given(tmp_path):
    config = configfile.parse({**TREE, "modules": {"profile": str(tmp_path / "p.json")}})
    with pytest.raises(UserError, match="advise measures the network itself"):
        draw(config, describe(config.data), Situation(1), RankInfo())


def test_the_command_takes_a_module_per_device(capsys, tmp_path):
    """Whatever the file says: its two modules are no answer for three devices."""
    file = tmp_path / "two.yaml"
    tree = {**TREE, "modules": {"count": 2}, "data": {"name": "digits", "batch_size": 3}}
    file.write_text(yaml.safe_dump(tree))
    assert cli.main(["advise", str(file), "--devices", "3"]) == 0
    assert "Advice: " in capsys.readouterr().out
    assert cli.main(["advise", str(file), "--devices", "0"]) == 2
