"""Every file in configs/ loads and builds, and opens with the command that runs it."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from pipeline_local.commandline.parser import parser
from pipeline_local.configfile import configfile, starter
from pipeline_local.data import datasets
from pipeline_local.data.images.datasets import describe
from pipeline_local.data.info import DataInfo
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.placement.placement import Placement

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def facts(config):
    """Of the real data set, which need not be here."""
    if config.data.name in ("digits", "synthetic"):
        return describe(config.data)
    if config.data.name == "synthetic_tokens":
        return datasets.describe(config.data)
    if config.data.name == "tokens":
        length = config.data.args["sequence_length"]
        different = 257 if config.data.args.get("tokenizer") == "bytes" else 8192
        return DataInfo(
            num_train=1800,
            num_test=300,
            num_classes=different,
            sample_shape=(length,),
            mean=(),
            std=(),
            classes=(),
            label_shape=(length,),
            dtype="int64",
        )
    size = config.data.image_size or 224
    imagenet = "imagenet" in str(config.data.root)
    train, test, classes = (1_281_167, 50_000, 1000) if imagenet else (50_000, 10_000, 10)
    return DataInfo(train, test, classes, (3, size, size), (0.5,) * 3, (0.2,) * 3, ())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_loads_and_builds(path):
    config = configfile.load(path)
    blueprint = draw_blueprint(config, facts(config))
    count = len(blueprint.modules)
    assert count == (config.modules.known_count or len(blueprint.backbone.blocks))
    assert blueprint.run_plan.num_steps > 0
    for index in range(count - 1):
        assert blueprint.contract(index).activations.shape[0] > 0
    Placement.of(blueprint, config.parallel.stages or count)
    assert configfile.parse(yaml.safe_load(configfile.dump(config))) == config


@pytest.mark.parametrize("path", [*CONFIGS, "init"], ids=lambda p: Path(p).name)
def test_norms_and_embeddings_of_language_models_do_not_decay(path):
    if isinstance(path, str):
        config = configfile.parse(yaml.safe_load(starter.text("causal_lm", "own.yaml")))
    else:
        config = configfile.load(path)
    if config.task.name == "next_token" and config.optimizer.name == "adamw":
        assert config.optimizer.decay == "matrices"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_opens_with_its_command(path):
    first = path.read_text().splitlines()[0]
    match = re.fullmatch(
        r"# (?:pipeline-local|torchrun .* -m pipeline_local) ((?:train|bench baselines) .*)", first
    )
    assert match, first
    options = parser().parse_args(shlex.split(match[1]))
    assert options.config == Path("configs") / path.name
    configfile.load(ROOT / options.config, [o.replace("PATH", ".") for o in options.overrides])


def test_there_are_configs():
    assert len(CONFIGS) >= 5
