"""What a configuration may say of its engine; DeepSpeed itself is not asked."""

import re
import sys

import pytest
import torch

from pipeline_local.configfile import configfile
from pipeline_local.engines import deepspeed_library
from pipeline_local.engines.settings import DERIVED, EngineSettings
from pipeline_local.errors import ConfigError, UserError


def config(**changes):
    tree = {"model": {"name": "resnet20"}, "data": {"name": "digits"}, "train": {"steps": 3}}
    for key, value in changes.items():
        tree[key] = tree.get(key, {}) | value if isinstance(value, dict) else value
    return configfile.parse(tree)


def test_the_section_is_handed_on_as_it_is():
    own = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    got = config(engine="deepspeed", deepspeed=own)
    assert EngineSettings.of(got) == EngineSettings(deepspeed=own)
    assert EngineSettings.of(config(engine="deepspeed")).deepspeed == {}


def test_keys_of_a_command_line_reach_into_the_section(tmp_path):
    (path := tmp_path / "own.yaml").write_text(
        "model: {name: resnet20}\ndata: {name: digits}\ntrain: {steps: 3}\nengine: deepspeed\n"
    )
    pairs = [f"deepspeed.zero_optimization.{pair}" for pair in ("stage=2", "overlap_comm=true")]
    got = configfile.load(path, pairs)
    assert got.deepspeed.zero_optimization == {"stage": 2, "overlap_comm": True}
    (again := tmp_path / "again.yaml").write_text(configfile.dump(got))
    assert configfile.load(again) == got


def test_the_torch_engine_is_the_default():
    assert EngineSettings.of(config()) == EngineSettings()
    assert EngineSettings.of(config(parallel={"zero": 1})) == EngineSettings(zero=1)
    assert EngineSettings.of(None) == EngineSettings()


@pytest.mark.parametrize("key", DERIVED)
def test_what_a_run_derives_is_no_key(key):
    with pytest.raises(ConfigError) as refused:
        config(engine="deepspeed", deepspeed={key: 1})
    (line,) = refused.value.problems
    assert line == f"deepspeed.{key}: a run derives it from {DERIVED[key]}; set that"
    known = configfile.keys()
    assert DERIVED[key] in known


def zero(stage):
    return {"engine": "deepspeed", "deepspeed": {"zero_optimization": {"stage": stage}}}


BFLOAT16 = {"engine": "deepspeed", "deepspeed": {"bf16": {"enabled": True}}}


FLOAT16 = {"engine": "deepspeed", "deepspeed": {"fp16": {"enabled": True}}}
NEEDS = r"needs engine=deepspeed with deepspeed\.fp16\.enabled=true"


def half(bf16=None, **keys):
    """A configuration in float16."""
    section = {"fp16": {"enabled": True, **keys}} | ({"bf16": bf16} if bf16 else {})
    return {"precision": "float16", "engine": "deepspeed", "deepspeed": section}


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("odd", ["false", "true", "auto", 1, 0, None, [True]])
def test_a_switch_is_true_or_false(name, odd):
    """Text would count as true, whatever it says."""
    with pytest.raises(ConfigError) as refused:
        config(engine="deepspeed", deepspeed={name: {"enabled": odd}})
    assert refused.value.problems == [
        f"deepspeed.{name}.enabled must be true or false, got {odd!r}"
    ]
    assert not EngineSettings(deepspeed={name: {"enabled": odd}}).rounds


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"deepspeed": {"bf16": {"enabled": True}}},
            r"deepspeed\.bf16 needs engine=deepspeed, got",
        ),
        (zero(0), r"deepspeed\.zero_optimization\.stage must be 1 or 2, got 0: .*; use 1 or 2"),
        (zero(3), r"deepspeed\.zero_optimization\.stage must be 1 or 2, got 3: .*; use 1 or 2"),
        (zero(1) | {"parallel": {"zero": 1}}, r"parallel\.zero=1 is the torch engine's; .*\.stage"),
        (
            zero(1) | {"optimizer": {"name": "muon"}},
            r"optimizer\.name=muon .*; use sgd or adamw, or",
        ),
        (zero(1) | {"precision": "float64"}, r"engine=deepspeed .* float64; use precision=float32"),
        (zero(1) | {"channels_last": True}, r"engine=deepspeed .* channels_last=true; set it to"),
        (BFLOAT16, r"deepspeed\.bf16\.enabled needs precision=bfloat16, got float32; set it"),
        (FLOAT16, r"deepspeed\.fp16\.enabled needs precision=float16, got float32; set it"),
        ({"precision": "float16"}, rf"precision=float16 {NEEDS}, got engine=torch; set them, or"),
        (
            {"precision": "float16", "engine": "deepspeed"},
            rf"precision=float16 {NEEDS}, which scales losses; set them, or use precision=bfloat16",
        ),
        (
            BFLOAT16 | {"precision": "float16"},
            r"deepspeed\.bf16\.enabled needs precision=bfloat16, got float16; set it",
        ),
        (
            {"precision": "float16", "deepspeed": {"fp16": {"enabled": True}}},
            r"deepspeed\.fp16 needs engine=deepspeed, got torch; set that",
        ),
        (
            half(bf16={"enabled": True}),
            r"deepspeed\.bf16\.enabled and deepspeed\.fp16\.enabled: .*; leave one of them out",
        ),
        (
            half(auto_cast=True),
            r"deepspeed\.fp16\.auto_cast: a run derives it from precision; leave",
        ),
        (half(fp16_master_weights_and_grads=True), r"deepspeed\.fp16\.fp16_master.*; leave it out"),
        (half(hysteresis=0), r"deepspeed\.fp16\.hysteresis must be at least 1, .*, got 0"),
        (
            half(initial_scale_power=65),
            r"deepspeed\.fp16\.initial_scale_power must be from 0 to 64, .*, got 65",
        ),
        (
            half() | {"reconcile": {"weight": 0.1, "estimator": "exact"}},
            r"reconcile\.estimator=exact differentiates twice, .*; use reconcile\.estimator=shift",
        ),
        (
            {"engine": "deepspeed", "deepspeed": {"zero_optimisation": {}}},
            r"unknown key 'deepspeed\.zero_optimisation'; did you mean",
        ),
        ({"parallel": {"zero": 2}}, r"parallel\.zero: should be"),
    ],
)
def test_contradictions_are_one_line_each(changes, line):
    with pytest.raises(ConfigError) as refused:
        config(**changes)
    (problem,) = refused.value.problems
    assert re.match(line, problem), problem


def test_what_fits_is_taken():
    got = EngineSettings.of(config(**BFLOAT16, precision="bfloat16"))
    assert got.rounds
    assert not got.scales
    assert not EngineSettings.of(config(**zero(2))).rounds
    got = EngineSettings.of(config(**half(loss_scale=128.0)))
    assert (got.rounds, got.scales) == (True, True)
    config(**half(), reconcile={"weight": 0.0, "estimator": "exact"})
    config(**half(), parallel={"wire_dtype": "float16"})


def test_without_the_package_one_line_says_so(monkeypatch):
    monkeypatch.setattr(deepspeed_library, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"not installed; run pip install 'deepspeed>=0\.19\.8', or"
    ):
        deepspeed_library.check({}, torch.device("cpu"))


def test_an_old_release_is_refused(monkeypatch):
    class Old:
        __version__, __version_major__, __version_minor__, __version_patch__ = "0.19.6", 0, 19, 6

    monkeypatch.setitem(sys.modules, "deepspeed", Old)
    monkeypatch.setattr(deepspeed_library, "find_spec", lambda name: True)
    with pytest.raises(
        UserError, match=r"needs deepspeed 0\.19\.8 or later, got 0\.19\.6; run pip"
    ):
        deepspeed_library.check({}, torch.device("cpu"))


@pytest.mark.parametrize("stage", ["[1]", "{a: 1}", "true", "1.0"])
def test_a_stage_of_zero_that_is_no_number(tmp_path, stage):
    (file := tmp_path / "own.yaml").write_text("model: {name: mlp}\ndata: {name: digits}")
    with pytest.raises(ConfigError, match=r"zero_optimization.stage must be 1 or 2, got"):
        configfile.load(file, ["engine=deepspeed", f"deepspeed.zero_optimization.stage={stage}"])
