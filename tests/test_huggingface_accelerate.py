"""What `accelerate` changes, and that everything around it goes on working."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("transformers")

import torch
import transformers

import undivided
from huggingface_pairs import ACCELERATED, BY_NAME, T5_FAMILY, good, pair
from undivided.integrations.huggingface import NAME
from undivided.testing.huggingface import (
    compare_gradients,
    counted,
    gradients,
    largest_tensor,
    valid_logits,
)
from undivided.testing.huggingface_models import Family, of, t5


def test_the_report_says_what_was_replaced():
    model = T5_FAMILY.build("eager")
    report = undivided.accelerate(model)
    assert report.replaced == {
        ("T5Block", "norms with the residual sum"): 4,
        ("T5Attention", "attention"): 6,
        ("T5Attention", "bias in the kernel"): 4,
        ("T5LayerNorm", "norm"): 12,
        ("T5DenseActDense", "feed-forward block"): 4,
        ("Linear", "linear layer"): 33,  # four in each attention, two in each feed-forward block, the head
        ("Dropout", "dropout"): 16,  # one in each stack, one behind each of ten parts, one inside each of four
        ("T5Stack", "stack without padding"): 2,
        ("T5ForConditionalGeneration", "training without what is behind the labels"): 1,
    }
    assert report.left == {}
    assert report.count("attention") == 6
    assert str(report).startswith("T5ForConditionalGeneration:\n  replaced    4 T5Block: norms")


def test_restore_leaves_nothing_behind():
    model = T5_FAMILY.build("eager")
    before = {id(m): dict(vars(m)) for m in model.modules()}
    expected = valid_logits(model, T5_FAMILY.inputs())
    undivided.accelerate(model)
    undivided.accelerate(model)  # a second time is no other
    with counted() as calls:
        valid_logits(model, T5_FAMILY.inputs())
    assert sum(calls.values()) == 6
    undivided.restore(model)
    undivided.restore(model)
    assert all(vars(m).keys() == before[id(m)].keys() for m in model.modules())
    assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {"eager"}
    assert torch.equal(valid_logits(model, T5_FAMILY.inputs()), expected)


def test_another_attention_can_be_chosen_afterwards():
    model = T5_FAMILY.build("eager")
    expected = valid_logits(model, T5_FAMILY.inputs())
    undivided.accelerate(model)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = "eager"
    with counted() as calls:
        got = valid_logits(model, T5_FAMILY.inputs())
    assert not calls
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_restore_leaves_what_was_changed_since():
    model = T5_FAMILY.build("eager")
    undivided.accelerate(model)
    model.encoder.config._attn_implementation_internal = "sdpa"
    mine = model.encoder.block[0].layer[0].layer_norm.forward = lambda x: x
    del model.decoder.final_layer_norm.forward
    undivided.restore(model)
    assert model.encoder.config._attn_implementation == "sdpa"
    assert model.decoder.config._attn_implementation == "eager"
    assert model.encoder.block[0].layer[0].layer_norm.forward is mine


def test_a_copy_is_accelerated_on_its_own():
    model = T5_FAMILY.build("eager")
    undivided.accelerate(model)
    twin = copy.deepcopy(model)
    undivided.restore(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with counted() as calls:
        got = valid_logits(twin, T5_FAMILY.inputs())
    assert sum(calls.values()) == 6
    expected = valid_logits(T5_FAMILY.build("eager"), T5_FAMILY.inputs())
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_what_is_no_transformers_model_is_refused():
    with pytest.raises(TypeError, match="a Linear was given; allowed: a transformers model"):
        undivided.accelerate(torch.nn.Linear(2, 2))


def test_saved_and_loaded_by_name(tmp_path):
    model = T5_FAMILY.build("eager")
    undivided.accelerate(model)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation=NAME)
    inputs = T5_FAMILY.inputs()
    with counted() as calls:
        got = valid_logits(loaded.eval(), inputs)
    assert sum(calls.values()) == 6
    torch.testing.assert_close(got, valid_logits(model, inputs), atol=1e-4, rtol=0)


def training(name: str, **changes) -> Family:
    """The family with dropout wherever it has some."""
    model = {"t5": "T5", "bart": "Bart"}[name]
    words = dict(dropout_rate=0.2) if name == "t5" else dict(dropout=0.2, attention_dropout=0.2, activation_dropout=0.2)
    if name == "t5":
        return t5(name, model, **words, **changes)
    base = BY_NAME["bart"].config().to_dict() | words
    return Family(name, "BartForConditionalGeneration", of("BartConfig", **base), BY_NAME["bart"].inputs)


def step(model, inputs, seed: int):
    torch.manual_seed(seed)
    logits = valid_logits(model, inputs)
    return logits.detach(), gradients(model, logits)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_training_with_dropout_is_a_function_of_torchs_seed(name):
    family = training(name)
    model, inputs = ACCELERATED.ours(family).train(), family.inputs()
    (first, grads), (again, same), (other, _) = (step(model, inputs, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and all(torch.equal(grads[n], same[n]) for n in grads)
    assert not torch.allclose(first, other, atol=1e-2)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_dropout_stands_where_eagers_does(name, monkeypatch):
    """With torch's dropout, both draw from its generator in the same order, once attention itself drops nothing."""
    monkeypatch.setattr("undivided.integrations.hf_dropout.dropout", torch.nn.functional.dropout)
    family = training(name)
    inputs = family.inputs()
    for word in ("attention_mask", "decoder_attention_mask"):  # padding would draw numbers in eager alone
        inputs[word] = torch.ones_like(inputs[word])
    results = []
    for model in pair(family):
        for module in model.train().modules():
            if type(module).__name__ in ("T5Attention", "BartAttention"):
                module.dropout = 0.0
        results.append(step(model, inputs, 4))
    (expected, grads), (got, found) = results
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    good(compare_gradients(found, grads))
    assert not torch.allclose(expected, valid_logits(ACCELERATED.ours(family), inputs), atol=1e-2)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # from 5.23 on
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_gradient_checkpointing_gives_the_same_gradients(name, reentrant):
    """With dropout: what is run again must drop the same."""
    family = training(name)
    model, inputs = ACCELERATED.ours(family).train(), family.inputs()
    expected, grads = step(model, inputs, 3)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=reentrant))
    if reentrant:
        model.enable_input_require_grads()
    got, found = step(model, inputs, 3)
    assert torch.equal(got, expected)
    good(compare_gradients(found, grads))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_autocast_trains(name):
    family = BY_NAME[name]
    eager, ours = pair(family)
    inputs = family.inputs()
    exact = valid_logits(eager, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = valid_logits(ours, inputs), valid_logits(eager, inputs)
    error, honest = (got - exact).abs().max(), (expected - exact).abs().max()
    assert error <= 2 * honest
    grads = gradients(ours, got)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads.values())
    assert grads.keys() == gradients(eager, expected).keys()


def test_frozen_weights_stay_without_gradients():
    """All but the relative bias of the encoder is frozen: the gradient of the table alone is asked for."""
    eager, ours = pair(T5_FAMILY)
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    found = []
    for model in (ours, eager):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name == table)
        found.append(gradients(model, valid_logits(model, T5_FAMILY.inputs())))
    assert found[0].keys() == {table}
    good(compare_gradients(*found))


class Adapter(torch.nn.Linear):
    """A layer with something added, as adapters put in a Linear's place."""

    def forward(self, x):
        return super().forward(x) + 0.5


@pytest.mark.parametrize("name", ["t5", "bart", "bert"])
def test_adapters_and_hooks_that_come_later_run(name):
    family, calls = BY_NAME[name], []
    results = []
    for model in pair(family):
        blocks = [m for m in model.modules() if hasattr(m, "wi") or hasattr(m, "fc1") or hasattr(m, "intermediate")]
        block = blocks[0].intermediate if name == "bert" else blocks[0]
        layer = {"t5": "wi", "bart": "fc1", "bert": "dense"}[name]
        adapter = Adapter(32, 48, bias=name != "t5")
        adapter.load_state_dict(getattr(block, layer).state_dict())
        setattr(block, layer, adapter)
        norm = next(m for m in model.modules() if type(m).__name__.endswith("LayerNorm"))
        norm.register_forward_hook(lambda module, given, out: (calls.append(1), out * 1.5)[1])
        results.append(valid_logits(model, family.inputs()))
    assert len(calls) == 2
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)
    plain = valid_logits(family.build("eager"), family.inputs())
    assert not torch.allclose(results[0], plain, atol=1e-2)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_forward_that_somebody_replaces_later_runs(name):
    """On a layer of a feed-forward block, and on the norm that ends it or comes before it."""
    family, results = BY_NAME[name], []
    for model in pair(family):
        layers = [
            m for n, m in model.named_modules() if n.endswith((".wi", ".fc1", ".final_layer_norm", ".2.layer_norm"))
        ]
        for layer in layers:
            layer.forward = lambda x, layer=layer: type(layer).forward(layer, x) * 1.5
        assert len(layers) >= 6
        results.append(valid_logits(model, family.inputs()))
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)
    assert not torch.allclose(results[0], valid_logits(family.build("eager"), family.inputs()), atol=1e-2)


@pytest.mark.parametrize("name", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_a_compiled_model_gives_the_same(name):
    family = t5(name, "T5", num_layers=1, num_decoder_layers=1) if name == "t5" else BY_NAME[name]
    eager, ours = pair(family)
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    inputs = family.inputs()
    got, expected = valid_logits(compiled, inputs), valid_logits(eager, inputs)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    good(compare_gradients(gradients(ours, got), gradients(eager, expected)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "llama", "gemma2"])
def test_decoding_with_a_static_cache_is_one_graph(name):
    """As `generate` compiles it on a GPU: masks are made outside of the graph and go in."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    family = BY_NAME[name]
    eager, ours = pair(family)
    torch.compiler.reset()
    config = transformers.CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True
    words = {key: x for key, x in family.inputs().items() if not key.startswith("decoder")}
    words |= dict(max_new_tokens=8, min_new_tokens=8, do_sample=False, cache_implementation="static")
    got = ours.generate(**words, compile_config=config)
    assert torch.equal(got, eager.generate(**words))
    assert 1 <= len(graphs) <= 2  # a sliding window fills up once


LENGTHS = [(name, (128, 256)) for name in ("t5", "umt5", "switch")]
LONG = pytest.param("t5", (512, 1024, 2048, 4096), marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "lengths"), [*LENGTHS, LONG])
def test_no_tensor_of_t5_grows_with_the_square_of_the_length(name, lengths):
    """In a training step; the largest is the logits, batch x seqlen x vocabulary."""
    model = BY_NAME[name].build("eager")
    assert largest_tensor(model, 128) == 8 * 4 * 128**2  # batch x nheads x seqlen x seqlen
    undivided.accelerate(model)
    assert [largest_tensor(model, length) for length in lengths] == [8 * length * 64 for length in lengths]
