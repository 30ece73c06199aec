"""State dicts in and out; what does not fit is named."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline_local import seeds
from pipeline_local.errors import UserError
from pipeline_local.models import registry, weights
from pipeline_local.models.backbone import Backbone, Block, materialize, reset_parameters

ARGS = {"width": 2}


def parts(seed=0, num_classes=10):
    backbone = registry.build("resnet20", ARGS, num_classes, (3, 16, 16))
    device = torch.device("cpu")
    made = [
        (
            b,
            materialize(
                b.module, backbone.initialize, seeds.derive(seed, b.name), device, torch.float32
            ),
        )
        for b in [*backbone.blocks, backbone.classifier]
    ]
    return backbone, made


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", "nested.pt"])
def test_round_trip(tmp_path, suffix):
    _, saved = parts(seed=1)
    state = weights.model_state(saved)
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if "nested" in suffix else state, path)
    backbone, made = parts(seed=2)
    loaded = weights.load(path)
    fresh = weights.check(backbone, loaded)
    assert fresh == []
    for block, module in made:
        weights.load_block(module, block, loaded, fresh)
    after = weights.model_state(made)
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)


@pytest.mark.parametrize("drop", [True, False])
def test_fine_tuning_keeps_a_fresh_classifier(drop):
    """The state dict has another number of classes, or no classifier at all."""
    state = weights.model_state(parts(seed=1, num_classes=100)[1])
    if drop:
        del state["fc.weight"], state["fc.bias"]
    backbone, made = parts(seed=2)
    fresh = weights.check(backbone, state)
    assert fresh == ["fc.weight", "fc.bias"]
    before = made[-1][1].fc.weight.clone()
    for block, module in made:
        weights.load_block(module, block, state, fresh)
    assert torch.equal(made[-1][1].fc.weight, before)
    assert torch.equal(made[0][1].conv1.weight, state["conv1.weight"])


def test_what_does_not_fit_is_named():
    backbone, made = parts()
    state = weights.model_state(made)
    state["conv1.weight"] = state["conv1.weight"][:, :2]
    state["layer9.conv"] = torch.zeros(1)
    for i in range(3):
        del state[f"layer1.{i}.conv1.weight"], state[f"layer1.{i}.conv2.weight"]
    with pytest.raises(UserError) as caught:
        weights.check(backbone, state)
    text = str(caught.value)
    assert "missing: layer1.0.conv1.weight" in text
    assert "and 1 more" in text
    assert "unexpected: layer9.conv" in text
    assert "of another shape: conv1.weight" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fc.weight", torch.zeros(10, 9)),  # of another width
        ("fc.weight", torch.zeros(100, 9)),
        ("fc.bias", torch.zeros(())),
        ("fc.scale", torch.zeros(1)),
    ],
)
def test_only_the_number_of_classes_may_differ(name, value):
    backbone, made = parts()
    state = weights.model_state(made) | {name: value}
    with pytest.raises(UserError, match=name):
        weights.check(backbone, state)


def test_hidden_layers_of_a_classifier_are_not_fresh():
    """A ViT's classifier has a norm and a hidden layer, which fine-tuning must keep."""
    args = {"patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    args["representation_size"] = 24
    old, new = (registry.build("vit", args, classes, (3, 16, 16)) for classes in (100, 10))
    blocks = [(block, block.module) for block in (*old.blocks, old.classifier)]
    state = {b.prefix + n: torch.zeros_like(t, device="cpu") for b, m in blocks
             for n, t in m.state_dict().items()}  # fmt: skip
    assert weights.check(new, state) == ["heads.head.weight", "heads.head.bias"]
    state["heads.pre_logits.weight"] = torch.zeros(30, 16)
    with pytest.raises(UserError, match=r"heads\.pre_logits\.weight"):
        weights.check(new, state)


def test_a_classifier_without_weights_needs_none():
    blocks = (Block("a", nn.Linear(2, 3)),)
    backbone = Backbone(blocks, Block("classifier", nn.Flatten()), reset_parameters, "NC")
    assert weights.check(backbone, nn.Linear(2, 3).state_dict()) == []


def test_old_files_that_cannot_be_mapped_are_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(weights.load(path)["a"], torch.ones(2))


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("none.pt", None, "does not exist"),
        ("a.safetensors", lambda p: p.write_bytes(b"garbage"), "cannot be read"),
        ("b.pt", lambda p: p.write_bytes(b"garbage"), r"model\.weights"),
        ("c.pt", lambda p: torch.save([1, 2], p), "holds no state dict"),
        ("d.pt", lambda p: torch.save({"a": 1}, p), "holds no state dict"),
        ("e.pt", lambda p: torch.save(Bomb(), p), "not a plain state dict"),
    ],
)
def test_unreadable_files(tmp_path, capsys, name, write, message):
    path = tmp_path / name
    if write:
        write(path)
    with pytest.raises(UserError, match=message) as caught:
        weights.load(path)
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out
