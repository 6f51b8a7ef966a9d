"""Starting from a trained model: what is taken over, what stays, and how fast the rest learns."""

from pathlib import Path

import pytest
import torch

from undivided.tasks import N_TO_1, N_TO_M, N_TO_N, Vocabulary, Words, task
from undivided.training.batches import Examples
from undivided.training.finetuning import freeze, layers, rates, transfer
from undivided.training.log import Display
from undivided.training.models import SavedModel, build
from undivided.training.settings import Settings
from undivided.training.trainer import Trainer, make_optimizer

SIZES = {"d_model": 16, "nheads": 2, "d_ff": 32}
RECURRENT = {"d_model": 16, "layers": 2}
SOURCE, TARGET = Vocabulary("abcd"), Vocabulary("xyz")


def make(kind="transformer", shape=N_TO_M, source=SOURCE, target=TARGET, seed=0, **changes):
    torch.manual_seed(seed)
    return build(kind, shape, source, target, {**(SIZES if kind == "transformer" else RECURRENT), **changes})


def saved(model, kind="transformer", source=SOURCE, target=TARGET, name="g2p"):
    return SavedModel(model, kind, task(name), source, target, {})


def names(model, parameters):
    known = {id(value): name for name, value in model.named_parameters()}
    return [known[id(one)] for one in parameters]


@pytest.mark.parametrize(
    ("kind", "shape", "lowest", "count"),
    [
        ("transformer", N_TO_M, "encoder.embedding.weight", 1 + 2 + 2 + 1),
        ("transformer", N_TO_1, "encoder.embedding.weight", 1 + 2 + 1),
        ("gru-attention", N_TO_M, "encoder.embedding.weight", 1 + 2 + 2 + 1),
        ("lstm", N_TO_N, "encoder.embedding.weight", 1 + 2 + 1),
    ],
)
def test_layers_are_in_order_and_hold_every_weight_once(kind, shape, lowest, count):
    model = make(kind, shape)
    found = [names(model, layer) for layer in layers(model)]
    assert len(found) == count and found[0] == [lowest]
    assert sorted(sum(found, [])) == sorted(name for name, _ in model.named_parameters())
    for number in (0, 1):
        inside = f"blocks.{number}." if kind == "transformer" else f"_l{number}"
        assert sum(inside in name for name in found[1 + number]) > 3
    top = "decoder.embedding.weight" if shape == N_TO_M else "classes.weight"
    assert top in found[-1]


def test_the_norm_behind_the_encoder_belongs_to_its_last_block():
    model = make()
    assert {"encoder.norm.weight", "encoder.norm.bias"} <= set(names(model, layers(model)[2]))
    assert {"decoder.norm.weight", "decoder.norm.bias"} <= set(names(model, layers(model)[-1]))


def test_rates_fall_from_the_top():
    model = make()
    parts = [part for part, _ in rates(model, 0.5)]
    assert parts == [2.0**-n for n in (5, 4, 3, 2, 1, 0)]
    assert [part for part, _ in rates(model, 1.0)] == [1.0]


def train(model, out: Path, **changes):
    settings = Settings(**{"task": "g2p", "steps": 3, "batch_size": 4, "evaluations": 1, "lr": 1e-2, **changes})
    freeze(model, settings.freeze)
    pairs = [([3, 4, 5], [3, 4]), ([4, 6], [5]), ([5], [4, 4]), ([6, 6, 3], [3])] * 2
    trainer = Trainer(
        settings,
        model,
        Examples(pairs, "cpu"),
        lambda scored: {"wer": 1.0},
        "wer",
        lambda path, kept, about: None,
        out,
    )
    trainer.run(Display("test", "wer", quiet=True))
    return trainer


@pytest.mark.parametrize("kind", ["transformer", "gru"])
def test_frozen_layers_stay_to_the_bit_and_the_others_learn(kind, tmp_path):
    model = make(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = names(model, sum(layers(model)[:2], []))
    train(model, tmp_path, freeze=2)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not changed & set(frozen) and changed | set(frozen) >= dict(model.named_parameters()).keys()


def test_lower_layers_learn_more_slowly(tmp_path):
    model = make()
    before = [[one.detach().clone() for one in layer] for layer in layers(model)]
    trainer = train(model, tmp_path, layer_rate=0.5, steps=1, clip=0.0, weight_decay=0.0, warmup=0.0)
    # The first update of Adam moves every weight that has a gradient by the learning rate.
    steps = [
        max(float((new.detach() - old).abs().max()) for new, old in zip(layer, olds, strict=True))
        for layer, olds in zip(layers(model), before, strict=True)
    ]
    assert steps == [pytest.approx(1e-2 * 0.5**n, rel=0.01) for n in (5, 4, 3, 2, 1, 0)]
    assert trainer.optimizer.param_groups[-1]["lr"] == 1e-2


def test_the_optimiser_of_a_whole_model_has_the_two_groups_of_older_checkpoints():
    model = make()
    groups = make_optimizer(model, Settings("g2p", steps=1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_what_cannot_be_frozen_is_named():
    with pytest.raises(ValueError, match="freeze=6 leaves nothing to learn; this model has 6 layers"):
        freeze(make(), 6)
    for changes, text in (({"freeze": -1}, "freeze=-1"), ({"layer_rate": 0.0}, "layer_rate=0.0 must be above 0")):
        with pytest.raises(ValueError, match=text):
            Settings("g2p", steps=1, **changes)


def test_symbols_take_their_rows_with_them():
    theirs, source, target = make(seed=1), Vocabulary("dXa"), Vocabulary("zy")
    mine = make(source=source, target=target, seed=2)
    random = mine.encoder.embedding.weight[source.encode("X")].clone()
    report = transfer(mine, source, target, saved(theirs))
    for vocabulary, known, ours, old in (
        (source, SOURCE, mine.encoder, theirs.encoder),
        (target, TARGET, mine.decoder, theirs.decoder),
    ):
        for symbol in set(vocabulary.symbols) & set(known.symbols):
            mine_row = ours.embedding.weight[vocabulary.encode(symbol)]
            assert torch.equal(mine_row, old.embedding.weight[known.encode(symbol)])
        assert torch.equal(ours.embedding.weight[:3], old.embedding.weight[:3])  # padding, begin and end
    assert torch.equal(mine.encoder.embedding.weight[source.encode("X")], random)
    assert torch.equal(
        mine.decoder.blocks[1].feed_forward.w_in.weight, theirs.decoder.blocks[1].feed_forward.w_in.weight
    )
    assert report.new == () and report.source_symbols == (5, 6) and report.target_symbols == (5, 5)


def test_the_encoder_of_one_shape_starts_another():
    theirs = make(seed=1)
    mine = make(shape=N_TO_1, target=Vocabulary(("good", "bad")), seed=2)
    before = mine.classes.weight.clone()
    report = transfer(mine, SOURCE, Vocabulary(("good", "bad")), saved(theirs))
    assert set(report.new) == {"classes.weight", "classes.bias"} and torch.equal(mine.classes.weight, before)
    assert torch.equal(mine.encoder.norm.weight, theirs.encoder.norm.weight)
    assert "of task" not in str(report) and "new: classes.weight, classes.bias" in str(report)


def test_words_are_symbols_too():
    old, new = Words.of([("a", "b", "a", "b")]), Words.of([("b", "c", "b", "c")])
    theirs, mine = make(shape=N_TO_1, source=old, seed=1), make(shape=N_TO_1, source=new, seed=2)
    assert transfer(mine, new, TARGET, saved(theirs, source=old)).source_symbols == (5, 6)  # <unknown> and b
    assert torch.equal(
        mine.encoder.embedding.weight[new.encode(["b"])], theirs.encoder.embedding.weight[old.encode("b")]
    )


def test_a_deeper_model_takes_the_layers_that_there_are():
    theirs, mine = make(seed=1), make(seed=2, encoder_layers=3)
    report = transfer(mine, SOURCE, TARGET, saved(theirs))
    assert report.new and all(name.startswith("encoder.blocks.2.") for name in report.new)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"d_model": 32}, r"encoder.embedding.weight has shape \(7, 32\), in the checkpoint it has \(7, 16\)"),
        ({"d_ff": 64}, r"feed_forward.w_in.weight has shape \(64, 16\), in the checkpoint it has \(32, 16\)"),
        ({"kind": "gru"}, "no layer of the transformer of task g2p fits this model: kind or sizes differ"),
    ],
)
def test_models_that_have_nothing_in_common_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        transfer(make(**changes), SOURCE, TARGET, saved(make()))
