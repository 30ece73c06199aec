"""A configuration with an imagined profile, for simulations."""

from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.placement import profile_file
from pipeline_local.placement.draw import draw

TREE = {
    "model": {"name": "mlp", "hidden": 8, "depth": 6},
    "modules": {"count": 4},
    "head": {"name": "linear"},
    "reconcile": {"weight": 0.1, "every": 4},
    "data": {"name": "synthetic", "image_size": 8, "batch_size": 32, "limit": 64},
    "train": {"steps": 10, "microbatches": 2},
}
COST = {"forward": 0.01, "backward": 0.02, "second": 0.03, "update": 0.001}


def profiled(tmp_path, at_least=False, **more):
    """Every block costs the same, heads nothing; of one microbatch."""
    config = configfile.parse({**TREE, **more})
    blueprint = draw(config, describe(config.data))
    names = [block.name for block in blueprint.backbone.blocks]
    free = dict.fromkeys(COST, 0.0)
    facts = {
        "setting": profile_file.setting(blueprint),
        "device": {"name": "imagined", "threads": 1},
        "blocks": dict.fromkeys(names, COST),
        "heads": [{"end": n, "copies": 0, **free} for n in range(1, len(names))],
        "classifier": free,
        "link": {"latency_seconds": 0.0, "bytes_per_second": 1e12, "at_least": at_least},
    }
    path = tmp_path / "profile.json"
    profile_file.save(facts, path)
    return configfile.parse({**TREE, **more, "modules": {"count": 4, "profile": str(path)}})
