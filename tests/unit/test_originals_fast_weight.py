"""The fast-weight code's constructor in our terms: published sizes, every option, refusals."""

import pytest
import torch

from workbench.config import load
from workbench.errors import UnknownOriginal, Unsupported
from workbench.models.language_model import ModelConfig
from workbench.originals import fast_weight

SMALL = {
    "n_token": 267735,
    "n_layer": 16,
    "n_head": 8,
    "d_model": 128,
    "d_head": 16,
    "d_inner": 2048,
    "tgt_len": 256,
    "mem_len": 0,
    "ext_len": 0,
    "cutoffs": [20000, 40000, 200000],
    "skip_attn_normalization": True,
    "proj_dim": 16,
    "n_roll": 2,
    "dropout": 0.1,
    "dropatt": 0.1,
}
LARGER = {"d_model": 256, "d_head": 32, "tgt_len": 384}
COUNTS = {
    **dict.fromkeys((4, 5, 6, 34, 35, 2), 44_018_394),
    **dict.fromkeys((24, 25, 26, 44, 45, 46), 44_034_778),
    0: 44_280_794,
    1: 44_577_498,
    54: 48_770_266,
    **dict.fromkeys((64, 124, 134), 44_575_450),
    **dict.fromkeys((224, 234, 244, 254), 47_262_426),
    324: 56_327_898,
    934: 44_135_130,
    80: 43_760_346,
    90: 45_345_498,
}
TINY = {**SMALL, "n_token": 20, "n_layer": 2, "n_head": 2, "d_model": 8, "d_head": 4, "d_inner": 12}
TINY |= {"cutoffs": [], "tgt_len": 5}


def ctor(number, base=SMALL, **options):
    # performers of the PyTorch kind refuse to go without normalisation
    return {**base, "attn_type": number, "skip_attn_normalization": number != 5, **options}


def build(arguments):
    config = load(ModelConfig, fast_weight.model_config(arguments), "model")
    with torch.device("meta"):
        return config.build(arguments["n_token"])


@pytest.mark.parametrize("number", COUNTS)
def test_published_sizes(number):
    fast_weight.check(ctor(number))
    assert build(ctor(number)).n_parameters == COUNTS[number]


@pytest.mark.parametrize(("number", "count"), [(2, 89_833_434), (24, 89_866_202), (0, 90_882_522)])
def test_published_sizes_of_the_larger_models(number, count):
    assert build(ctor(number, {**SMALL, **LARGER})).n_parameters == count


def test_base_weights_come_with_the_model_and_are_not_trained():
    model = build(ctor(64, use_slow_base_weights=True))
    base = sum(p.numel() for name, p in model.named_parameters() if name.endswith("base_HKX"))
    assert (model.n_parameters, base) == (44_575_450, 44_675_802 - 44_575_450)


BARE_WIDTH = {"d_res": 6, "remove_ff": True}
CASES = [
    *((number, {}) for number in COUNTS if number not in (0, 1, 2)),
    *((number, {"pre_lnorm": True, "no_pos": True}) for number in (4, 24, 54, 134, 90)),
    *((number, BARE_WIDTH) for number in (80, 90, 124, 224)),
    *((number, {**BARE_WIDTH, "remove_lnorm": True, "remove_res": True}) for number in (80, 224)),
    *((number, {"remove_lnorm": True}) for number in (90, 124)),
    *((number, {"remove_res": True, "pre_lnorm": True}) for number in (90, 124)),
    *((number, {"remove_out_proj": True, "remove_ff": True}) for number in (80, 90, 124, 224)),
    *((number, {"remove_ff": True}) for number in (24, 25, 26, 54, 64, 934)),
    (54, {"fast_net_depth": 3}),
    (64, {"use_slow_base_weights": True}),
    (24, {"d_embed": 6}),
]


@pytest.mark.parametrize(("number", "options"), CASES, ids=str)
def test_each_parameter_of_ours_is_linked_once(number, options):
    arguments = ctor(number, TINY, **options)
    fast_weight.check(arguments)
    model = build(arguments)
    linked = [name for link in fast_weight.links(arguments) for name in link.ours]
    assert sorted(linked) == sorted(name for name, _ in model.named_parameters())
    theirs = [name for link in fast_weight.links(arguments) for name in link.theirs]
    assert len(theirs) == len(set(theirs))


def test_feed_forward_layers_that_the_flag_does_not_reach():
    kinds = {
        number: build(ctor(number, TINY, remove_ff=True)).layers[0].channel is None
        for number in (24, 25, 26, 54, 64, 80, 934)
    }
    assert kinds == {24: True, 25: False, 26: False, 54: False, 64: False, 80: True, 934: True}


def test_rates_of_dropout_reach_their_places():
    config = fast_weight.model_config(ctor(90))
    block = config["stack"][0]["block"]
    assert config["p_embedding"] == config["p_output"] == block["p_drop"] == 0.1
    assert block["mixer"]["p_hidden"] == block["channel"]["p_hidden"] == 0.1
    assert fast_weight.model_config(ctor(4))["stack"][0]["block"]["mixer"]["p_attention"] == 0.1
    assert fast_weight.model_config(ctor(34))["stack"][0]["block"]["mixer"]["p_attention"] == 0.0


@pytest.mark.parametrize(
    ("number", "options", "error"),
    [
        *((number, {}, UnknownOriginal) for number in (3, 7, 10, 14, 16, 36, 74, 104, 204, 924)),
        (5, {"skip_attn_normalization": True}, UnknownOriginal),
        (254, {"skip_attn_normalization": False}, UnknownOriginal),
        (934, {"skip_attn_normalization": False}, Unsupported),
        (24, {"remove_lnorm": True}, UnknownOriginal),
        (134, {"d_res": 6, "remove_ff": True}, UnknownOriginal),
        (90, {"d_res": 6}, UnknownOriginal),
        (24, {"no_such_flag": 1}, UnknownOriginal),
    ],
    ids=str,
)
def test_what_the_original_cannot_do_is_refused(number, options, error):
    with pytest.raises(error):
        fast_weight.check(ctor(number, TINY, **options))
