"""Vocabularies: distributions, clusters, ties, sampling, and what they cost."""

import math
import random
from collections import Counter
from itertools import pairwise, product

import pytest
import torch
from tiny_run import recipe as tiny_recipe
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import workbench
from workbench.config import load
from workbench.errors import ConfigError
from workbench.models import sampled
from workbench.models.clusters import automatic_splits
from workbench.models.language_model import ModelConfig, build_model
from workbench.models.vocabulary import VocabularyConfig
from workbench.originals import ends
from workbench.originals.links import load_parameters
from workbench.train.records import EvalRecord

D, C = 8, 30
CUTS = {"kind": "adaptive", "cutoffs": [6, 14, 20]}
CONFIGS = [
    {"kind": "plain"},
    {"kind": "plain", "tie_weights": False, "bias": False, "d_hidden": 5},
    {"kind": "plain", "d_embed": 6},
    {"kind": "plain", "d_embed": 12, "tie_projections": True},
    {"kind": "plain", "d_embed": 6, "tie_weights": False, "d_hidden": 5},
    CUTS,
    {**CUTS, "cluster_order": "reversed", "d_embed": 6},
    {**CUTS, "d_embed": 6, "tie_projections": "all"},
    {**CUTS, "div_val": 2, "tie_weights": False, "tie_projections": "none"},
    {**CUTS, "div_val": 2, "project_same_width": False},
    {**CUTS, "cutoffs": [29], "div_val": 4, "d_embed": 16, "tie_projections": [True]},
    {**CUTS, "cutoffs": [], "div_val": 2},
    {"kind": "split", "splits": [10, 12], "tie_weights": False, "d_hidden": 5},
    {"kind": "split", "cluster_order": "reversed", "splits": [10, 12]},
    {"kind": "split"},
]


def build(data, d_model=D, n_classes=C, seed=0):
    """A vocabulary all of whose parameters are random, biases and cluster rows too."""
    config = VocabularyConfig.registry[data["kind"]]
    torch.manual_seed(seed)
    vocabulary = load(config, data, "vocabulary").build(d_model, n_classes)
    for parameter in vocabulary.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return vocabulary.double()


def hidden(vocabulary, *shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, vocabulary.d_hidden, generator=generator, dtype=torch.float64)


def ids(*shape, high=C, seed=2):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def counted(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("data", CONFIGS, ids=str)
def test_a_distribution_whose_entries_are_the_losses(data):
    vocabulary = build(data)
    h_BTD, targets = hidden(vocabulary, 3, 50), ids(3, 50)
    log_probs = vocabulary.log_probs(h_BTD)
    assert log_probs.shape == (3, 50, C)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 50).double())
    expected = -log_probs.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(vocabulary.nll(h_BTD, targets), expected)
    assert vocabulary.embed(targets).shape == (3, 50, D)


@pytest.mark.parametrize("data", CONFIGS, ids=str)
def test_low_precision_is_summed_in_float32(data):
    vocabulary = build(data).bfloat16()
    h = hidden(vocabulary, 2, 5).bfloat16()
    assert vocabulary.log_probs(h).dtype == torch.float32
    assert vocabulary.nll(h, ids(2, 5)).dtype == torch.float32
    assert vocabulary.embed(ids(2, 5)).dtype == torch.bfloat16


def test_an_embedding_is_its_row_projected_and_scaled():
    vocabulary = build({**CUTS, "div_val": 2})
    x_BTD = vocabulary.embed(ids(2, 40))
    for token, x_D in zip(ids(2, 40).flatten(), x_BTD.flatten(0, 1), strict=True):
        i = sum(int(token) >= cut for cut in CUTS["cutoffs"])
        row = vocabulary.embeddings[i].weight[token - vocabulary.ends[i]]
        expected = vocabulary.project_in[i].weight @ row * math.sqrt(D)
        torch.testing.assert_close(x_D, expected)


def test_equal_to_pytorchs_adaptive_softmax():
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(D, C, [6, 14, 20], div_value=2.0).double()
    apart = {"tie_weights": False, "tie_projections": "none", "project_same_width": False}
    ours = build({**CUTS, **apart, "div_val": 2})
    with torch.no_grad():
        ours.outputs[0].weight.copy_(theirs.head.weight[:6])
        ours.clusters.weight.copy_(theirs.head.weight[6:])
        for bias in [x.bias for x in [*ours.outputs, ours.clusters]]:
            bias.zero_()
        for i, (down, rows) in enumerate(theirs.tail, 1):
            ours.project_out[i].weight.copy_(down.weight.T)
            ours.outputs[i].weight.copy_(rows.weight)
    h_ND, targets = hidden(ours, 1, 60), ids(1, 60)
    torch.testing.assert_close(ours.nll(h_ND, targets)[0], -theirs(h_ND[0], targets[0]).output)
    torch.testing.assert_close(ours.log_probs(h_ND)[0], theirs.log_prob(h_ND[0]))


@pytest.mark.parametrize(
    "data", [CUTS, {**CUTS, "div_val": 2}, {"kind": "split", "splits": [9, 20]}]
)
def test_reversed_clusters_are_natural_ones_with_other_names(data):
    natural, other = build(data), build({**data, "cluster_order": "reversed"})
    h, targets = hidden(natural, 2, 30), ids(2, 30)
    assert not torch.allclose(natural.nll(h, targets), other.nll(h, targets))
    for part in (other.clusters.weight, other.clusters.bias):
        part.data = part.data.flip(0)
    torch.testing.assert_close(natural.log_probs(h), other.log_probs(h))


def test_ties_are_one_tensor_and_counted_once():
    rows = C * D + C + 3 * (D + 1)
    assert counted(build(CUTS)) == rows
    assert counted(build({**CUTS, "tie_weights": False})) == rows + C * D
    # one table of width 6; the head's own projection, none, or four of the output's
    narrow = C * 6 + C + 3 * 7
    for ties, n_projections in (("tails", 2), ("all", 1), ("none", 5), ([True, False, True], 3)):
        vocabulary = build({**CUTS, "d_embed": 6, "tie_projections": ties})
        assert counted(vocabulary) == narrow + n_projections * 6 * D, ties
    divided = build({**CUTS, "div_val": 2, "tie_projections": "all"})
    tables = 6 * 8 + 8 * 4 + 6 * 2 + 10 * 1
    assert counted(divided) == tables + C + 3 * 9 + D * (8 + 4 + 2 + 1)
    assert all(a is b for a, b in zip(divided.project_in, divided.project_out, strict=True))
    skipping = build({**CUTS, "div_val": 2, "project_same_width": False})
    assert counted(skipping) == tables + C + 3 * 9 + D * (4 + 2 + 1)
    assert skipping.outputs[1].weight is skipping.embeddings[1].weight


class Largest(TorchDispatchMode):
    """Watches every tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.parametrize("div_val", [1, 2])
def test_losses_never_hold_all_classes_for_all_tokens(div_val):
    n_tokens, n_classes = 256, 2000
    data = {"kind": "adaptive", "cutoffs": [100, 500], "div_val": div_val}
    vocabulary = build(data, n_classes=n_classes)
    # one token in a hundred is in the last tail
    targets = torch.tensor([50] * 150 + [300] * 103 + [1000] * 3)[None]
    h = hidden(vocabulary, 1, n_tokens).requires_grad_()
    with Largest() as seen:
        vocabulary.nll(h, targets).sum().backward()
    # the head, which has a column for each tail, and what the tails' own tokens ask of them
    assert seen.numel <= 256 * 102 + 103 * 400 + 3 * 1500 < n_tokens * n_classes // 7
    with Largest() as seen:
        vocabulary.log_probs(h)
    assert seen.numel == n_tokens * n_classes


def test_an_empty_tail_costs_nothing_and_leaves_zero_gradients():
    vocabulary = build({**CUTS, "tie_weights": False, "div_val": 2})
    vocabulary.nll(hidden(vocabulary, 2, 5), ids(2, 5, high=6)).sum().backward()
    assert vocabulary.outputs[0].weight.grad.any()
    assert all(not output.weight.grad.any() for output in vocabulary.outputs[1:])


# ---- sampled softmax -----------------------------------------------------------------------------


def test_the_proposal_is_log_uniform():
    p_C = sampled.log_uniform(20)
    assert p_C.sum().item() == pytest.approx(1)
    assert p_C[3].item() == pytest.approx(math.log(5 / 4) / math.log(21))
    sampler = sampled.LogUniform(sampled.SampledConfig(n_samples=4), 20)
    torch.manual_seed(0)
    included = torch.stack(
        [torch.bincount(sampler.draw(torch.device("cpu")), minlength=20) for _ in range(4000)]
    )
    assert included.max() == 1
    expected = sampled.log_expected(p_C, 8).exp()
    torch.testing.assert_close(included.double().mean(0), expected, rtol=0, atol=0.03)


def test_rare_classes_keep_their_probability():
    # 1 - p rounds to one in float32; the logarithm must not become -inf
    log_expected = sampled.log_expected(sampled.log_uniform(1_000_000), 16)
    assert log_expected[-1].item() == pytest.approx(math.log(16e-6 / math.log(1e6)), abs=1e-4)


@pytest.mark.parametrize("extra", [{}, {"d_embed": 6}, {"bias": False}], ids=str)
def test_with_all_classes_drawn_the_sampled_softmax_is_the_full_one(extra):
    vocabulary = build({"kind": "plain", "sampled": {"n_samples": 5000}, **extra})
    h, targets = hidden(vocabulary, 2, 20), ids(2, 20)
    in_training = vocabulary.train().nll(h, targets)
    torch.testing.assert_close(in_training, vocabulary.eval().nll(h, targets), rtol=0, atol=1e-6)


def test_training_on_few_samples_finds_the_distribution():
    # as many classes as tokens of one distribution; a bias per class is all there is to learn
    weights = torch.tensor([8.0, 5, 1, 3, 1, 2, 0.5, 0.5, 2, 1])
    p_C = weights / weights.sum()
    vocabulary = build({"kind": "plain", "sampled": {"n_samples": 3}}, n_classes=10)
    optimizer = torch.optim.Adam([vocabulary.output.bias], lr=0.05)
    torch.manual_seed(0)
    h = torch.zeros(1, 512, D).double()
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 600)
        optimizer.zero_grad()
        vocabulary.nll(h, torch.multinomial(p_C, 512, replacement=True)[None]).mean().backward()
        optimizer.step()
    learned = vocabulary.eval().log_probs(h[:, :1])[0, 0].exp()
    torch.testing.assert_close(learned.float(), p_C, rtol=0, atol=0.02)


# ---- initial values ------------------------------------------------------------------------------


def model(vocabulary, **fields):
    block = {"mixer": {"kind": "attention", "n_heads": 2, "d_head": 32}}
    data = {"d_model": 64, "stack": [{"block": block}], "vocabulary": vocabulary, **fields}
    return build_model(load(ModelConfig, data, "model"), 3000, seed=0)


def test_initial_values_of_transformer_xl():
    data = {"kind": "adaptive", "cutoffs": [1000, 2000], "div_val": 2, "tie_weights": False}
    ours = model(data, init_std=0.02).vocabulary
    for part, std in [
        (ours.embeddings[1].weight, 0.02),
        (ours.outputs[0].weight, 0.02),
        (ours.clusters.weight, 0.02),
        (ours.project_in[1].weight, 0.01),
        (ours.project_out[0].weight, 0.01),
    ]:
        assert part.std().item() == pytest.approx(std, rel=0.15)
    assert not ours.outputs[1].bias.any() and not ours.clusters.bias.any()
    uniform = model(data, init_std=0.02, init_range=0.1, projection_std=0.03)
    table = uniform.vocabulary.embeddings[0].weight
    assert table.abs().max().item() <= 0.1
    assert table.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert uniform.vocabulary.project_in[1].weight.std().item() == pytest.approx(0.03, rel=0.1)
    assert uniform.layers[0].mixer_norm.weight.std().item() == pytest.approx(0.02, rel=0.3)


def test_initial_values_without_a_rule_are_those_of_adaptive_span():
    ours = model({"kind": "adaptive", "cutoffs": [1000], "div_val": 4}).vocabulary
    assert ours.embeddings[1].weight.std().item() == pytest.approx(1, rel=0.02)
    # as a linear map from the bin's width 16
    assert ours.project_in[1].weight.abs().max().item() == pytest.approx(1 / 4, rel=0.01)


def test_initial_values_of_awd_lstm():
    for data in ({"kind": "plain"}, {"kind": "split", "splits": [500, 1000]}):
        ours = model(data, init_range=0.1).vocabulary
        table = ours.embed(torch.arange(3000)[None]) / (8 if data["kind"] == "plain" else 1)
        assert table.abs().max().item() == pytest.approx(0.1, rel=0.01)
    assert not ours.clusters.weight.any() and not ours.outputs[0].bias.any()


def test_automatic_splits_are_the_originals():
    assert automatic_splits(33_278) == automatic_splits(75_000) == ()
    assert automatic_splits(267_735) == (2_800, 20_000, 76_000)
    assert automatic_splits(793_470) == (4_200, 35_000, 180_000)


# ---- in a run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vocabulary",
    [
        {"kind": "adaptive", "cutoffs": [4, 12], "div_val": 2, "cluster_order": "reversed"},
        {"kind": "split", "splits": [4, 12]},
        {"kind": "plain", "d_embed": 4, "sampled": {"n_samples": 8}},
    ],
    ids=lambda v: v["kind"],
)
def test_words_are_learned(vocabulary, tmp_path):
    # after each word mostly one of two
    draw, words, text = random.Random(0), [f"w{i}" for i in range(30)], [0]
    while len(text) < 4000:
        text.append((text[-1] * 2 + draw.randrange(2)) % 30 if draw.random() < 0.9 else 0)
    path = tmp_path / "words.txt"
    path.write_text(" ".join(words[i] for i in text))
    mixer = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 4}
    stack = [{"block": {"mixer": mixer}}]
    sizes = {"d_model": 8, "stack": stack, "vocabulary": vocabulary}
    fast = {"optimizer": {"kind": "adam", "lr": 2e-2}, "steps": 80, "eval_every": 80}
    recipe = tiny_recipe(path, sizes, **fast, eval_tokens=200)
    corpus = recipe.data.corpus.model_copy(update={"level": "word"})
    data = recipe.data.model_copy(update={"corpus": corpus, "segment_len": 16, "batch_size": 8})
    run = workbench.start(recipe.model_copy(update={"data": data}), out=tmp_path / "run")
    valid = [record.loss_nats for record in run if isinstance(record, EvalRecord)]
    shares = [count / len(text) for count in Counter(text).values()]
    without_context = -sum(share * math.log(share) for share in shares)
    assert valid[-1] < 0.85 * without_context


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({**CUTS, "cutoffs": [6, 6]}, r"cutoffs must ascend from above 0, got \[6, 6\]"),
        ({**CUTS, "cutoffs": [6, 30]}, "the last tail begins at 30, but there are only 30 classes"),
        ({**CUTS, "div_val": 4}, r"leaves bins of the widths \[8, 2, 0, 0\] from 8"),
        ({**CUTS, "tie_projections": [True] * 5}, "has 5 entries, but 3 cutoffs make 4 bins"),
        ({**CUTS, "cluster_order": "random"}, "cluster_order"),
        ({"kind": "split", "splits": [9, 4]}, "splits must ascend"),
        ({"kind": "split", "d_hidden": 5}, "one table cannot have two widths"),
        ({"kind": "plain", "d_hidden": 5}, "one table cannot have two widths"),
        ({"kind": "plain", "sampled": {"n_samples": 0}}, "sampled.n_samples"),
    ],
    ids=str,
)
def test_impossible_vocabularies_are_refused(data, says):
    with pytest.raises(ConfigError, match=says):
        build(data)


def test_a_last_layer_of_another_width_is_named():
    with pytest.raises(ConfigError, match=r"ends in width 64, but the vocabulary reads 5"):
        model({"kind": "plain", "tie_weights": False, "d_hidden": 5})


# ---- the originals' names ------------------------------------------------------------------------


def transformer_xl_shapes(ctor):
    """What the original's constructor makes, told from its description: no code of ours."""
    V, D, E = ctor["n_token"], ctor["d_model"], ctor["d_embed"]
    bounds = [0, *ctor["cutoffs"], V]
    sizes = [b - a for a, b in pairwise(bounds)]
    ties = ctor["tie_projs"] + [False] * len(sizes)
    shapes = {}
    if ctor["cutoffs"]:
        shapes |= {
            "crit.cluster_weight": (len(sizes) - 1, E),
            "crit.cluster_bias": (len(sizes) - 1,),
        }
    if ctor["div_val"] == 1:
        tables, projected = [(V, E)], D != E
    else:
        tables = [(size, E // ctor["div_val"] ** i) for i, size in enumerate(sizes)]
        projected = True
    for i, (size, width) in enumerate(tables):
        shapes[f"word_emb.emb_layers.{i}.weight"] = (size, width)
        shapes[f"crit.out_layers.{i}.bias"] = (size,)
        if not ctor["tie_weight"]:
            shapes[f"crit.out_layers.{i}.weight"] = (size, width)
        if projected:
            shapes[f"word_emb.emb_projs.{i}"] = (D, width)
    for i in range(len(sizes)):
        if projected and not ties[i]:
            shapes[f"crit.out_projs.{i}"] = (D, tables[min(i, len(tables) - 1)][1])
    return shapes


@pytest.mark.parametrize("cutoffs", [[], [6, 14, 20], [29]], ids=str)
def test_every_constructor_of_transformer_xl_is_understood(cutoffs):
    claims = ([], [True], [False, True], [False, True, True, True], [True, False, True, False])
    for div_val, d_embed, tie_weight, tie_projs in product(
        (1, 2, 4), (8, 6, 64), (True, False), claims
    ):
        if len(tie_projs) > len(cutoffs) + 1 or d_embed // div_val ** len(cutoffs) == 0:
            continue
        ctor = {"n_token": C, "d_model": D, "d_embed": d_embed, "cutoffs": cutoffs}
        ctor |= {"div_val": div_val, "tie_weight": tie_weight, "tie_projs": tie_projs}
        theirs = {n: torch.randn(shape) for n, shape in transformer_xl_shapes(ctor).items()}
        holder = torch.nn.Module()
        holder.vocabulary = build(ends.transformer_xl(ctor)).float()
        load_parameters(holder, ends.transformer_xl_links(ctor), theirs, str(ctor))


@pytest.mark.parametrize("cutoffs", [[], [4, 9]])
def test_the_originals_arguments_say_the_same_in_several_ways(cutoffs):
    short = {"d_model": 8, "cutoffs": cutoffs, "d_embed": 6, "tie_projs": [True]}
    long = {**short, "tie_projs": [True] + [False] * len(cutoffs), "div_val": 1, "tie_weight": True}
    assert ends.transformer_xl(short) == ends.transformer_xl(long)
    same_width, no_width = ({**long, "d_embed": width} for width in (8, None))
    assert ends.transformer_xl(same_width) == ends.transformer_xl(no_width)
