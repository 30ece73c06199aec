"""Language models: their blocks in order are the uncut model, to the bit, and tokens look back."""

import copy
import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline_local import seeds
from pipeline_local.errors import UserError
from pipeline_local.learning.precision import autocast
from pipeline_local.models import causal_lm, hf_config, registry
from pipeline_local.models.backbone import made

LENGTH, VOCABULARY = 12, 40
WIDE = {"hidden_size": 32, "num_attention_heads": 4, "tie_word_embeddings": False}
SMALL = {**WIDE, "num_hidden_layers": 2, "intermediate_size": 48}
GROUPED = {**SMALL, "num_key_value_heads": 2}
HEADS = {**SMALL, "head_dim": 8}
SLIDING = {"sliding_window": 4}
ONE_SLIDES = {"layer_types": ["sliding_attention", "full_attention"], **SLIDING}
ARCHITECTURES = {
    "arcee": GROUPED,
    "exaone4": {**GROUPED, **ONE_SLIDES},
    "gemma": HEADS,
    "gemma3_text": {**HEADS, **ONE_SLIDES},
    "glm": HEADS,
    "gpt2": {**WIDE, "num_hidden_layers": 2},
    "gpt_neox": SMALL,
    "helium": HEADS,
    "llama": GROUPED,
    "ministral3": {**HEADS, **SLIDING},
    "mistral": {**GROUPED, **SLIDING},
    "olmo": SMALL,
    "olmo2": SMALL,
    "olmo3": {**SMALL, **ONE_SLIDES},
    "phi3": {**SMALL, **SLIDING},
    "qwen2": {**SMALL, "use_sliding_window": True, "max_window_layers": 1, **SLIDING},
    "qwen3": {**HEADS, "num_key_value_heads": 2},
    "seed_oss": HEADS,
    "smollm3": GROUPED,
    "stablelm": SMALL,
    "starcoder2": {**GROUPED, **SLIDING},
}
BOTH = pytest.mark.parametrize("attention", ["sdpa", "eager"])
CPU = torch.device("cpu")


def build(architecture="llama", length=LENGTH, vocabulary=VOCABULARY, **keys):
    keys = {**ARCHITECTURES[architecture], **keys}
    return registry.build(
        "causal_lm",
        {"architecture": architecture, **keys},
        (length, vocabulary),
        (length,),
        torch.int64,
    )[0]


def modules_of(backbone, seed=0, dtype=torch.float32):
    blocks = [*backbone.blocks, backbone.classifier]
    return [
        made(block, backbone.initialize, seeds.derive(seed, block.name), CPU, dtype)
        for block in blocks
    ]


def through(modules, ids):
    for module in modules:
        ids = module(ids)
    return ids


def state_of(backbone, modules):
    blocks = [*backbone.blocks, backbone.classifier]
    pairs = zip(blocks, modules, strict=True)
    return {b.prefix + n: v for b, m in pairs for n, v in m.state_dict().items()}


def uncut(backbone, modules):
    """transformers' own model with the same weights, by its own loading."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    args = dict(backbone.language.args)
    attention = args.pop("attn_implementation", "sdpa")
    config = hf_config.configuration(None, args.pop("architecture"), args, VOCABULARY)
    config._attn_implementation = attention
    with hf_config.quiet():
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    model.load_state_dict(state_of(backbone, modules), strict=True)
    return model


def ids_of(length=LENGTH, batch=3, seed=0):
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@BOTH
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_in_order_are_the_model_to_the_bit(architecture, attention):
    backbone = build(architecture, attn_implementation=attention)
    modules = modules_of(backbone)
    model = uncut(backbone, modules)
    ids = ids_of()
    for training in (False, True):
        for part in (*modules, model):
            part.train(training)
        torch.manual_seed(1)
        wanted = model(input_ids=ids).logits
        torch.manual_seed(1)
        logits = through(modules, ids)
        assert logits.shape == (3, LENGTH, VOCABULARY)
        assert logits.std() > 0.01
        assert torch.equal(logits, wanted)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_layers_are_a_model(architecture):
    """Each layer is what it was: of its kind of attention, with or without rotary embeddings."""
    from transformers import AutoConfig, AutoModelForCausalLM

    whole = build(architecture, **({"num_hidden_layers": 5} if not_listed(architecture) else {}))
    count = len(whole.blocks) - 2
    modules = modules_of(whole)
    kept = [*zip(whole.blocks, modules, strict=False)][: count + 1]
    kept.append((whole.classifier, modules[-1]))
    facts = json.loads(whole.language.first(count).files["config.json"])
    assert facts.get("num_hidden_layers", facts.get("n_layer")) == count
    config = AutoConfig.for_model(**facts)
    with hf_config.quiet():
        model = AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict({b.prefix + n: v for b, m in kept for n, v in m.state_dict().items()})
    ids = ids_of()
    found = through([module.eval() for _, module in kept], ids)
    assert torch.equal(model(input_ids=ids).logits, found)


def not_listed(architecture):
    """Whether its number of layers is free here."""
    return "layer_types" not in ARCHITECTURES[architecture]


def test_the_table_of_architectures_is_the_tested_one():
    assert tuple(ARCHITECTURES) == causal_lm.TESTED


@BOTH
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral"])
def test_no_token_sees_a_later_one(architecture, attention):
    """Attention without a mask is causal under sdpa, and looks ahead under eager."""
    modules = modules_of(build(architecture, attn_implementation=attention))
    ids = ids_of()
    other = ids.clone()
    other[:, 7:] = (other[:, 7:] + 1) % VOCABULARY
    for module in modules:
        module.eval()
    first, second = through(modules, ids), through(modules, other)
    assert torch.equal(first[:, :7], second[:, :7])
    assert not torch.equal(first[:, 7:], second[:, 7:])


@BOTH
def test_a_window_ends_where_it_says(attention):
    """One layer of window 4 sees its own token and three before."""
    modules = modules_of(build("mistral", attn_implementation=attention, num_hidden_layers=1))
    x = modules[0](ids_of(batch=1)).detach().requires_grad_()
    modules[1](x)[0, 9].sum().backward()
    seen = x.grad[0].abs().sum(-1) > 0
    assert seen.tolist() == [False] * 6 + [True] * 4 + [False] * 2


def test_a_layer_gives_all_samples():
    """`layer(x)[0]` would be the first sample."""
    _, layer, *_ = modules_of(build())
    assert layer(torch.randn(3, LENGTH, 32)).shape == (3, LENGTH, 32)


@pytest.mark.parametrize("architecture", ["llama", "olmo3", "gemma3_text"])
def test_rotary_frequencies_are_filled(architecture):
    """They are in no state dict, and memory from the meta device holds anything."""
    backbone = build(architecture)
    modules = modules_of(backbone)
    model = uncut(backbone, modules)
    wanted = dict(model.model.rotary_emb.named_buffers())
    for layer in modules[1:-1]:
        found = dict(layer.rotary.named_buffers())
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not any("inv_freq" in name for name in state_of(backbone, modules))


def test_angles_are_right_at_position_4000_in_bfloat16():
    _, layer, *_ = modules_of(build(max_position_embeddings=5000))
    where = torch.tensor([[4000]])
    with autocast("cpu", torch.bfloat16):
        cosines, _ = layer.rotary(torch.zeros(1, 1, 32, dtype=torch.bfloat16), where)
    frequencies = 10000.0 ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    wanted = (4000 * frequencies).cos().repeat(2)
    assert (cosines[0, 0].double() - wanted).abs().max() < 2**-8  # the cosine is rounded, no more


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "olmo"])
def test_gradients_over_many_tokens_do_not_stall_in_bfloat16(architecture):
    """Sums in bfloat16 stop growing at 256: frequent tokens and norms would get far too little.

    Every block is a module here, whose activations are in bfloat16."""
    keys = {"max_position_embeddings": 512}
    if architecture == "gpt2":
        keys |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    modules = modules_of(build(architecture, 512, **keys))
    ids = torch.zeros(4, 512, dtype=torch.int64)  # one token, 1024 times and more
    ids[:, ::2] = ids_of(256, 4)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for module in modules:
            module.zero_grad()
        with autocast("cpu", dtype):
            logits = ids
            for module in modules:
                logits = module(logits).to(dtype)
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), ids.roll(-1, 1).flatten(), reduction="sum"
            )
        loss.backward()
        found.append([p.grad.clone() for module in modules for p in module.parameters()])
    for wide, low in zip(*found, strict=True):
        assert low.dtype == torch.float32
        assert (low - wide).norm() < 0.1 * wide.norm(), wide.shape


def test_embeddings_are_looked_up_by_an_operation_that_repeats_itself():
    """The backward pass of `table[ids]` adds up in the order in which threads come."""
    modules = modules_of(build("gpt2"))
    with torch.profiler.profile(acc_events=True) as profile:
        modules[0](ids_of()).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert "aten::embedding_dense_backward" in names
    assert not names & {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "qwen3"])
def test_layers_can_be_differentiated_twice(architecture):
    """As `reconcile.estimator=exact` does, by torch's composite attention: it gives what attention
    in single steps gives, and leaves nothing out."""
    found = []
    for attention in ("sdpa", "eager"):
        layer = modules_of(build(architecture, attn_implementation=attention))[1].eval()
        x = torch.randn(2, LENGTH, 32, generator=torch.Generator().manual_seed(0))
        with sdpa_kernel(SDPBackend.MATH):
            y = layer(x.requires_grad_()).pow(2).sum()
            (g,) = torch.autograd.grad(y, x, create_graph=True)
            params = dict(layer.named_parameters())
            grads = torch.autograd.grad(g.pow(2).sum(), params.values(), allow_unused=True)
        found.append(dict(zip(params, grads, strict=True)))
    for name, gradient in found[0].items():
        if not name.endswith("mlp.c_proj.bias"):  # nothing after it is nonlinear
            assert gradient.norm() > 0, name
            assert torch.allclose(gradient, found[1][name], rtol=1e-3, atol=1e-4), name


def test_dropout_draws_from_the_global_generator():
    modules = modules_of(build("gpt2"))
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(through(modules, ids_of()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_fresh_weights_follow_the_architecture_and_the_block_alone():
    backbone = build("gpt2", hidden_size=64, initializer_range=0.1)
    modules = modules_of(backbone)
    state = state_of(backbone, modules)
    assert state["transformer.wte.weight"].std() == pytest.approx(0.1, rel=0.1)
    residual = state["transformer.h.1.attn.c_proj.weight"].std()
    assert residual == pytest.approx(0.1 / 2, rel=0.1)  # over the root of twice the layers
    assert torch.equal(state["transformer.ln_f.bias"], torch.zeros(64))
    block = backbone.blocks[2]
    again = made(block, backbone.initialize, seeds.derive(0, block.name), CPU, torch.float32)
    first, second = (state[f"transformer.h.{layer}.mlp.c_fc.weight"] for layer in (0, 1))
    assert torch.equal(again.state_dict()["1.mlp.c_fc.weight"], second)
    assert not torch.equal(first, second)


def test_every_token_is_trained():
    """OLMo's own padding token would be token 1 of any other tokenizer."""
    modules = modules_of(build("olmo"))
    ids = torch.ones(1, LENGTH, dtype=torch.int64)
    modules[0](ids).sum().backward()
    assert modules[0].embed_tokens.weight.grad[1].abs().sum() > 0


def test_the_unembedding_is_one_block_with_two_faces():
    *_, classifier = modules_of(build())
    x = torch.randn(2, LENGTH, 32)
    assert classifier.weight.shape == (VOCABULARY, 32)
    assert classifier.weight is classifier.unembedding.weight
    assert torch.equal(classifier(x), classifier.hidden(x) @ classifier.weight.T)
    assert torch.equal(classifier.hidden(x), classifier.norm(x))
    assert copy.deepcopy(classifier).norm.weight is not classifier.norm.weight


def test_names_are_those_of_hugging_face():
    backbone = build()
    assert [block.name for block in backbone.blocks] == ["embedding", "layer0", "layer1"]
    assert backbone.layout == "NTC"
    names = set(state_of(backbone, modules_of(backbone)))
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} < names
    assert "model.layers.1.self_attn.q_proj.weight" in names


def test_a_model_may_have_more_tokens_than_the_data():
    backbone = build(vocab_size=64)
    assert backbone.language.vocabulary == 64
    assert modules_of(backbone)[-1].weight.shape == (64, 32)


def test_a_file_and_its_keys(tmp_path):
    wanted = {"model_type": "gpt2", "n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps({**wanted, "tie_word_embeddings": False}))
    for file in (tmp_path, tmp_path / "config.json"):
        args = {"config": str(file), "num_hidden_layers": 1}
        backbone, _ = registry.build(
            "causal_lm", args, (LENGTH, VOCABULARY), (LENGTH,), torch.int64
        )
        assert len(backbone.blocks) == 2
        assert backbone.language.vocabulary == 50


def test_its_own_keys_build_it_again():
    for architecture in ("gpt2", "gemma3_text", "mistral"):
        first = build(architecture, attn_implementation="eager")
        args = dict(first.language.args)
        again, _ = registry.build("causal_lm", args, (LENGTH, VOCABULARY), (LENGTH,), torch.int64)
        assert again.language.args == args
        assert again.language.files == first.language.files


UNTIED = {"architecture": "gpt2", "tie_word_embeddings": False}
KEYS = {**GROUPED, "architecture": "llama"}
STAR = {**GROUPED, "architecture": "starcoder2"}
DYNAMIC = {"type": "dynamic", "factor": 2.0}
TWO = {"hidden_size": 32, "num_attention_heads": 4}
MOSHI = {**TWO, "tie_word_embeddings": True}
MISTAKES = [
    ({}, "missing key 'model.architecture'"),
    ({"architecture": "lama"}, "has no 'lama'; did you mean 'llama'"),
    ({"architecture": "llama", "hiden_size": 3}, "did you mean 'model.hidden_size'"),
    ({"architecture": "llama", "hidden_size": "a"}, "hidden_size: should be a whole number of"),
    ({"architecture": "llama", "hidden_size": None}, "'hidden_size' expected int"),
    ({"architecture": "llama", "vocab_size": 39}, "has 40 tokens, and the model only 39"),
    ({**UNTIED, "n_positions": 11}, "11 positions, got sequences of 12"),
    ({"architecture": "llama", "max_position_embeddings": 8}, "8 positions"),
    ({"architecture": "bert"}, "'bert', as its tokens see what follows"),
    ({"architecture": "t5"}, "'t5', as it is no decoder-only"),
    ({"architecture": "vit"}, "'vit', as it is no decoder-only"),
    ({"architecture": "mixtral"}, "'mixtral', as it routes tokens to experts"),
    ({"architecture": "phi"}, "'phi', as its unembedding has a bias"),
    ({"architecture": "granite"}, "'granite', as its layers, one after another, do not compute"),
    ({"architecture": "cohere", "tie_word_embeddings": False}, "'cohere', as its layers, one"),
    ({"architecture": "opt", "tie_word_embeddings": False}, "'opt', as its parts do not follow"),
    ({"architecture": "apertus", **SMALL}, "rule of fresh weights leaves out 0.mlp.act_fn.alpha"),
    ({"architecture": "fuyu"}, "'fuyu', as it is made in a way of its own ('FuyuConfig' object"),
    ({"architecture": "gemma4_unified_assistant"}, "assistant', as it is made in a way of its own"),
    ({"architecture": "moshi", **MOSHI}, "'moshi', as it ties matrices of [41, 32] and [40, 32]"),
    ({"architecture": "recurrent_gemma", "tie_word_embeddings": False}, "have linear_attention"),
    ({"architecture": "llama", "attn_implementation": "flash"}, "attn_implementation"),
    ({"architecture": "llama", "num_hidden_layers": 0}, "at least 1, got 0"),
    ({**KEYS, "num_key_value_heads": 3}, "'llama' as configured, as its layers cannot run"),
    ({**KEYS, "num_key_value_heads": 3}, "change one of model.hidden_size, "),
    ({**KEYS, "rope_scaling": DYNAMIC}, "model does; change one of model.rope_parameters, model."),
    ({**STAR, "embedding_dropout": 0.1}, "as configured, as its layers, one after another, do not"),
    ({**STAR, "embedding_dropout": 0.1}, "change one of model.embedding_dropout, model."),
    ({**HEADS, "architecture": "helium", "head_dim": 10}, "model.head_dim"),
    ({"architecture": "xlnet", **TWO}, "'xlnet', as its parts do not follow"),
    ({"architecture": "falcon", "tie_word_embeddings": False}, "'falcon', as its layers cannot"),
    ({"architecture": "llama", "hidden_act": "no"}, "(no 'no' for hidden_act); change it"),
    ({**UNTIED, "n_head": 7}, "must be divisible by num_heads"),
    ({"config": "/nowhere"}, "/nowhere cannot be read"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_what_cannot_be_trained_is_one_line(args, message):
    with pytest.raises(UserError) as caught:
        registry.build("causal_lm", args, (LENGTH, VOCABULARY), (LENGTH,), torch.int64)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON file"),
        ("[]", "has no model_type"),
        ('{"model_type": "llama", "quantization_config": {}}', "quantized"),
        ('{"model_type": "bert"}', "its tokens see what follows"),
    ],
)
def test_a_file_that_is_no_decoder_s(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        registry.build("causal_lm", {"config": str(tmp_path)}, (4, 5), (4,), torch.int64)


def test_images_are_no_tokens():
    with pytest.raises(UserError, match=r"token ids \[T\], got inputs of 3x8x8"):
        registry.build("causal_lm", {"architecture": "llama"}, 10, (3, 8, 8))
