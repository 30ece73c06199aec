"""A profile is read for the network it was measured on, and refused for any other."""

import json

import pytest
import torch

from pipeline_local.blueprint.device import Device
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.placement import profile_file
from pipeline_local.placement.costs import Cost, Link
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.placement.placement import Placement

TREE = {
    "model": {"name": "mlp", "hidden": 16, "depth": 6},
    "data": {"name": "digits", "batch_size": 32},
    "modules": {"count": 3},
    "head": {"name": "linear"},
    "train": {"steps": 4},
}


def draw(**sections):
    tree = dict(TREE)
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    config = configfile.parse(tree)
    return draw_blueprint(config, describe(config.data))


def write(path, seconds=(8, 1, 1, 1, 1, 1), **changes):
    facts = {
        "setting": profile_file.setting(draw()),
        "device": {"name": "cpu", "threads": 1},
        "blocks": {
            f"layer{i + 1}": profile_file.row(Cost(s, 0, 0, 0)) for i, s in enumerate(seconds)
        },
        "heads": [
            {"end": i, "copies": 0, **profile_file.row(Cost(0, 0, 0, 0))} for i in range(1, 6)
        ],
        "classifier": profile_file.row(Cost(1, 2, 3, 4)),
        "link": profile_file.row(Link(0.5, 1e9)),
        **changes,
    }
    profile_file.save(facts, path)
    return str(path)


def test_costs_are_read(tmp_path):
    costs = profile_file.load(tmp_path / write(tmp_path / "p.json"), draw())
    assert costs.unit == "seconds"
    assert [b.forward for b in costs.blocks] == [8, 1, 1, 1, 1, 1]
    assert costs.classifier == Cost(1, 2, 3, 4)
    assert costs.link.seconds(5e8) == 1
    assert "cpu" in costs.origin
    assert costs.device == Device.here(), "where an older profile does not say"


def test_devices_are_read(tmp_path):
    told = {"name": "H", "threads": 1, "type": "cuda", "memory": 2**30, "workspaces": 2**26}
    costs = profile_file.load(tmp_path / write(tmp_path / "p.json", device=told), draw())
    assert costs.device == Device("cuda", 2**30, 2**26)


def test_an_update_is_for_all_microbatches(tmp_path):
    setting = profile_file.setting(draw(train={"microbatches": 4}))
    path = write(tmp_path / "p.json", setting=setting)
    costs = profile_file.load(tmp_path / path, draw(train={"microbatches": 4}))
    assert costs.classifier == Cost(4, 8, 12, 4)


def test_modules_follow_the_profile(tmp_path):
    """A pure function of configuration and file, and what is resolved stands in the config."""
    path = write(tmp_path / "p.json")
    blueprint = draw(modules={"cuts": "auto", "profile": path})
    assert blueprint.modules[0] == range(0, 1)
    opens = tuple(f"layer{part.start + 1}" for part in blueprint.modules[1:])
    assert blueprint.config.modules.cuts == opens
    again = configfile.parse(
        {**TREE, "modules": {"count": 3, "cuts": list(blueprint.config.modules.cuts)}}
    )
    assert draw_blueprint(again, blueprint.info).modules == blueprint.modules
    flat = write(tmp_path / "flat.json", seconds=(1,) * 6)
    assert draw(modules={"cuts": "auto", "profile": flat}).modules[0] == range(0, 2)


def test_without_a_profile_flops_decide():
    blueprint = draw(modules={"cuts": "auto"}, model={"hidden": 8})
    assert blueprint.modules[0] == range(0, 1)  # 64 pixels in, 8 units ever after


def stages(blueprint, count):
    return [*Placement.of(blueprint, count).stages]


def doubts(blueprint, device):
    return profile_file.doubts(Placement.of(blueprint, 1).costs[0], device)


def test_stages_follow_the_profile(tmp_path):
    path = write(tmp_path / "p.json")
    blueprint = draw(modules={"profile": path}, parallel={"cuts": "auto"})
    assert blueprint.modules == (range(0, 2), range(2, 4), range(4, 6))
    assert stages(blueprint, 2) == [range(0, 1), range(1, 3)]
    assert stages(draw(parallel={"cuts": [3]}), 2) == [range(0, 2), range(2, 3)]
    assert stages(blueprint, 1) == [range(0, 3)]


def test_a_profile_that_is_not_needed_is_not_read():
    blueprint = draw(modules={"profile": "nowhere.json"})
    assert len(stages(blueprint, 2)) == 2


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"hidden": 32}}, "measured with model={'hidden': 16, 'depth': 6}"),
        ({"head": {"name": "mlp"}}, "head.name=linear, this run has mlp"),
        ({"data": {"batch_size": 16}}, "samples in a microbatch=32, this run has 16"),
        ({"precision": "bfloat16"}, "precision=float32, this run has bfloat16"),
        ({"head": {"pool": 2}}, "head.pool=1, this run has 2"),
    ],
)
def test_another_setting_is_refused(tmp_path, sections, message):
    path = write(tmp_path / "p.json")
    sections = {**sections, "modules": {"cuts": "auto", "profile": path}}
    with pytest.raises(UserError) as error:
        draw(**sections)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "it is not JSON"),
        ("[]", "is damaged"),
        ('{"version": 99, "setting": {}}', "version 99"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path, text, message):
    path = tmp_path / "p.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        profile_file.load(path, draw())


CPU = {"name": "cpu", "threads": 1}
LINK = profile_file.row(Link(0.5, 1e9))


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": {}},
        {"heads": [{}]},
        {"link": None},
        {"link": {**LINK, "bytes_per_second": 0}},
        {"link": {**LINK, "bytes_per_second": "1 GB"}},
        {"link": {**LINK, "bytes_per_second": "inf"}},
        {"link": {**LINK, "latency_seconds": -1}},
        {"link": {**LINK, "latency_seconds": "nan"}},
        {"device": {**CPU, "memory": "80 GiB"}},
        {"device": {**CPU, "memory": [1]}},
        {"device": {**CPU, "workspaces": "inf"}},
        {"classifier": {**profile_file.row(Cost(1, 2, 3, 4)), "forward": -1}},
        {"classifier": {**profile_file.row(Cost(1, 2, 3, 4)), "forward": "inf"}},
    ],
)
def test_damage_is_told(tmp_path, changes):
    path = write(tmp_path / "p.json", **changes)
    with pytest.raises(UserError, match="is damaged"):
        profile_file.load(tmp_path / path, draw())


def test_infinite_memory_is_damage(tmp_path):
    """No JSON, but Python reads it."""
    path = tmp_path / write(tmp_path / "p.json", device={**CPU, "memory": 77})
    path.write_text(path.read_text().replace("77", "Infinity"))
    with pytest.raises(UserError, match="is damaged"):
        profile_file.load(path, draw())


def test_a_lower_bound_of_the_bandwidth_is_told(tmp_path, idle_threads):
    busy = {**LINK, "at_least": True}
    blueprint = draw(modules={"profile": write(tmp_path / "p.json", link=busy)})
    costs = Placement.of(blueprint, 1).costs[0]
    assert costs.link == Link(0.5, 1e9, at_least=True)
    assert costs.origin.startswith("measured on cpu, 1 thread (the bandwidth of the link is a low")
    (doubt,) = doubts(blueprint, "cpu")
    assert "a lower bound, as the host was too busy to measure it" in doubt
    measured = draw(modules={"profile": write(tmp_path / "idle.json")})
    assert doubts(measured, "cpu") == []


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps("mine"))
    with pytest.raises(UserError, match="never overwritten"):
        write(path)
    assert path.read_text() == '"mine"'


def test_a_profile_of_each_device(tmp_path):
    """One device needs ten times as long; a single file stands for all."""
    fast = write(tmp_path / "fast.json", seconds=(1,) * 6)
    slow = write(tmp_path / "slow.json", seconds=(10,) * 6)
    both = {"cuts": "blocks", "count": None, "profile": [slow, fast]}
    blueprint = draw(modules=both, parallel={"cuts": "auto"})
    assert stages(blueprint, 2) == [range(0, 1), range(1, 6)]
    assert Placement.of(blueprint, 2).stage_times(1).predicted == [10, 5 + 7]
    alike = draw(modules={**both, "profile": [fast, fast]}, parallel={"cuts": "auto"})
    single = draw(modules={**both, "profile": fast}, parallel={"cuts": "auto"})
    assert stages(alike, 2) == stages(single, 2) == [range(0, 5), range(5, 6)]
    with pytest.raises(UserError, match="one for each, got 2 for 3"):
        stages(blueprint, 3)
    assert len(stages(blueprint, 1)) == 1  # as to evaluate the run
    assert Placement.of(blueprint, 1).stage_times(1) is None
    first, second, last = draw(modules={"cuts": "auto", "profile": [slow, fast]}).modules
    assert (len(first), len(second)) == (1, 1)  # the first two are meant for the slow one
    assert len(last) == 4


def test_another_device_than_the_profiles_is_told(tmp_path, idle_threads):
    blueprint = draw(modules={"profile": write(tmp_path / "p.json")})
    try:
        assert doubts(blueprint, "cpu") == []
        (doubt,) = doubts(blueprint, "gpu")
        assert "measured on cpu, 1 thread, not on gpu: predictions" in doubt
        facts = {"device": {"name": "gpu", "threads": 16}}
        gpu = draw(modules={"profile": write(tmp_path / "gpu.json", **facts)})
        assert doubts(gpu, "gpu") == [], "however many threads feed it"
        assert doubts(gpu, "gpu 2")
        torch.set_num_threads(2)
        (doubt,) = doubts(blueprint, "cpu")
        assert "measured on cpu, 1 thread, not on cpu, 2 threads" in doubt
    finally:
        torch.set_num_threads(1)
