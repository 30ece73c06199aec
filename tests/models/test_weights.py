"""State dicts in and out; what does not fit is named."""

import warnings

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
    backbone = registry.build("resnet20", ARGS, num_classes, (3, 16, 16))[0]
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
    found = weights.fitted(backbone, loaded)
    assert (found.fresh, found.notes) == ([], [])
    for block, module in made:
        weights.load_block(module, block, found.state, found.fresh)
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
    found = weights.fitted(backbone, state)
    fresh = found.fresh
    assert fresh == ["fc.weight", "fc.bias"]
    assert found.notes == ["model.weights: the classifier keeps fresh weights: fc.weight, fc.bias"]
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
        weights.fitted(backbone, state)
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
        weights.fitted(backbone, state)


def test_hidden_layers_of_a_classifier_are_not_fresh():
    """A ViT's classifier has a norm and a hidden layer, which fine-tuning must keep."""
    args = {"patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    args["representation_size"] = 24
    old, new = (registry.build("vit", args, classes, (3, 16, 16))[0] for classes in (100, 10))
    blocks = [(block, block.module) for block in (*old.blocks, old.classifier)]
    state = {b.prefix + n: torch.zeros_like(t, device="cpu") for b, m in blocks
             for n, t in m.state_dict().items()}  # fmt: skip
    assert weights.fitted(new, state).fresh == ["heads.head.weight", "heads.head.bias"]
    state["heads.pre_logits.weight"] = torch.zeros(30, 16)
    with pytest.raises(UserError, match=r"heads\.pre_logits\.weight"):
        weights.fitted(new, state)


def test_a_classifier_without_weights_needs_none():
    blocks = (Block("a", nn.Linear(2, 3)),)
    backbone = Backbone(blocks, Block("classifier", nn.Flatten()), reset_parameters, "NC")
    assert weights.fitted(backbone, nn.Linear(2, 3).state_dict()).fresh == []


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
        ("folder.pt", lambda p: p.mkdir(), "has no model.safetensors"),
        ("a.safetensors", lambda p: p.write_bytes(b"garbage"), "cannot be read"),
        ("b.pt", lambda p: p.write_bytes(b"garbage"), r"model\.weights"),
        ("c.pt", lambda p: torch.save([1, 2], p), "holds no state dict"),
        ("d.pt", lambda p: torch.save({"a": 1}, p), "holds no state dict: 'a' in it is int"),
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


def saved_state():
    return weights.model_state(parts(seed=1)[1])


def loaded(state, path=None):
    """The model's state dict after it has been started from this one, by way of a file or not."""
    if path is not None:
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
        state = weights.load(path)
    backbone, made = parts(seed=2)
    found = weights.fitted(backbone, state)
    found.check_finite()
    for block, module in made:
        weights.load_block(module, block, found.state, found.fresh)
    return weights.model_state(made), found


def inside(name, part):
    """`layer1.0.conv1.weight` as a wrapper of every block has it."""
    head, dot, rest = name.partition(".0.")
    return f"{head}.0.{part}.{rest}" if dot else name


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (lambda n: f"module.{n}", "'module.'"),
        (lambda n: f"_orig_mod.{n}", "'_orig_mod.'"),
        (lambda n: f"model.{n}", "'model.'"),
        (lambda n: f"_orig_mod.module.{n}", "'_orig_mod.' and 'module.'"),
        (lambda n: f"net.encoder._orig_mod.{n}", "'net.encoder.' and '_orig_mod.'"),
        (lambda n: inside(n, "_orig_mod"), "'_orig_mod.'"),
        (lambda n: f"model.{inside(n, 'module')}", "'model.' and 'module.'"),
        (lambda n: inside(n, "_checkpoint_wrapped_module"), "'_checkpoint_wrapped_module.'"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, rename, said, suffix):
    state = saved_state()
    renamed = {rename(name): value for name, value in state.items()}
    after, found = loaded(renamed, tmp_path / f"w.{suffix}")
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert found.notes == [f"model.weights: the prefix {said} is taken off its names"]


def test_names_that_a_model_has_itself_stay():
    """Here `module` and `model` are no wrappers."""
    blocks = tuple(Block(n, nn.Linear(2, 2), f"model.{n}.module.") for n in "ab")
    classifier = Block("c", nn.Linear(2, 2), "model.c.")
    backbone = Backbone(blocks, classifier, reset_parameters, "NC")
    state = weights.model_state([(b, b.module) for b in (*blocks, classifier)])
    assert weights.fitted(backbone, state).notes == []
    wrapped = {f"module.{name}": value for name, value in state.items()}
    found = weights.fitted(backbone, wrapped)
    assert found.state.keys() == state.keys()
    assert found.notes == ["model.weights: the prefix 'module.' is taken off its names"]


def test_an_averaged_model_is_a_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(2, 2) for _ in range(3))

    blocks = tuple(Block(n, nn.Linear(2, 2), f"{n}.") for n in "ab")
    backbone = Backbone(blocks, Block("c", nn.Linear(2, 2), "c."), reset_parameters, "NC")
    state = torch.optim.swa_utils.AveragedModel(Model()).state_dict()
    assert "n_averaged" in state
    found = weights.fitted(backbone, state)
    assert list(found.state) == [f"{n}.{kind}" for n in "abc" for kind in ("weight", "bias")]


def test_what_is_beside_the_prefix_is_named():
    state = {f"model.{name}": value for name, value in saved_state().items()}
    state["loss.weight"] = torch.ones(10)
    with pytest.raises(UserError, match=r"the prefix 'model\.' .* unexpected: loss\.weight;"):
        loaded(state)
    both = saved_state()
    both |= {f"module.{name}": value for name, value in both.items()}
    with pytest.raises(UserError, match=r"unexpected: module\.conv1\.weight"):
        loaded(both)


def test_counters_that_older_files_lack_begin_at_0(tmp_path):
    state = {n: v for n, v in saved_state().items() if not n.endswith("num_batches_tracked")}
    after, found = loaded(state, tmp_path / "w.pt")
    assert found.notes == ["model.weights: 19 num_batches_tracked begin at 0, as there are none"]
    assert after["bn1.num_batches_tracked"] == 0
    assert torch.equal(after["bn1.running_var"], state["bn1.running_var"])


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module", "net"])
def test_checkpoints_of_training_scripts(tmp_path, wrapper):
    state = saved_state()
    whole = {"epoch": 3, wrapper: {"model": state}, "optimizer": {"state": {0: torch.ones(1)}}}
    after, _ = loaded(whole, tmp_path / "w.pt")
    assert torch.equal(after["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_converted(tmp_path, dtype):
    state = saved_state()
    kept = {n: v.to(dtype) if v.is_floating_point() else v.int() for n, v in state.items()}
    after, _ = loaded(kept, tmp_path / "w.safetensors")
    assert after["conv1.weight"].dtype == torch.float32
    assert torch.equal(after["conv1.weight"], kept["conv1.weight"].float())


def quantized(value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is going to give it up; files stay
        return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("conv1.weight", quantized, "conv1.weight is quantized"),
        ("conv1.weight", lambda v: v.to(torch.complex64), "conv1.weight is complex64 instead of"),
        ("conv1.weight", lambda v: (v * 100).char(), "conv1.weight is int8 instead of float32"),
        ("conv1.weight", lambda v: v.to(torch.float8_e4m3fn), "conv1.weight is float8_e4m3fn"),
        ("conv1.weight", lambda v: v > 0, "conv1.weight is bool"),
        ("conv1.weight", lambda v: v.to_sparse(), "conv1.weight is sparse_coo"),
        ("conv1.weight", lambda v: v.to("meta"), "conv1.weight has no values"),
        ("bn1.num_batches_tracked", lambda v: v + 0.5, "bn1.num_batches_tracked is float32"),
        ("bn1.running_var", lambda v: v * torch.nan, "bn1.running_var: NaN or infinity"),
        ("fc.weight", lambda v: v + torch.inf, "fc.weight: NaN or infinity"),
        ("fc.bias", lambda v: v.double() + 1e300, "fc.bias: NaN or infinity"),
    ],
)
def test_values_that_are_no_weights_are_named(name, change, said):
    state = saved_state()
    state[name] = change(state[name])
    with pytest.raises(UserError, match=f"model.weights: {said}") as caught:
        loaded(state)
    assert "\n" not in str(caught.value)


def test_a_classifier_that_is_not_used_may_hold_anything():
    state = saved_state() | {"fc.weight": torch.full((3, 8), torch.nan)}
    state["fc.bias"] = torch.full((3,), torch.nan)
    after, found = loaded(state)
    assert found.fresh == ["fc.weight", "fc.bias"]
    assert after["fc.bias"].isfinite().all()
