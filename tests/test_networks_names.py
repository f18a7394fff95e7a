"""What names tell."""

import pytest

from kdjax.networks._names import automatic, common, natural, role_of, words


def test_names_of_both_frameworks_have_the_same_words():
    assert words("layer1.0.conv2") == words("layer1_0/Conv2") == ("layer", "1", "0", "conv", "2")


def test_numbers_are_ordered_as_numbers():
    names = ["layers.10.fc", "layers.2.fc", "layers.1.fc"]
    assert sorted(names, key=natural) == ["layers.1.fc", "layers.2.fc", "layers.10.fc"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["module.a", "module.b"], "module"),
        (["model.net.a", "model.net.b.c"], "model.net"),
        (["a", "module.b"], ""),
        (["module.a", "modules.b"], ""),
        ([], ""),
    ],
)
def test_what_all_names_begin_with_is_whole_parts(names, wanted):
    assert common(names) == wanted


def test_a_role_in_attention_has_many_names():
    assert [role_of(name, ".") for name in ("attn.q_proj", "attn.wk", "attn.value", "attn.o_proj", "attn.norm")] == [
        "query",
        "key",
        "value",
        "out",
        "",
    ]


def test_names_that_flax_made_are_told():
    assert automatic("Block_0/Dense_1")
    assert automatic("Block_0/head")
    assert not automatic("layer1_0/conv2")
