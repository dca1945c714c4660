"""What tells the data of one run from that of another: rows, tokenizer, alternates and token ids."""

import pytest
from connected import Memory, connected, rows

from dipo_pl.data_modules.alternates import Refusals
from dipo_pl.models.tokenizer import train_tokenizer
from dipo_pl.prompts import Llama2Chat, QuestionAnswer


def changed(one, other):
    return {name for name in one if one[name] != other[name]}


@pytest.mark.parametrize(("options", "names"), [
    ({"batch_size": 3, "seed": 5, "evaluation_rows": 1}, set()),
    ({"alternates": Refusals()}, set()),
    ({"forget": 4}, {"forget rows"}),
    ({"retain": rows("s", 7)}, {"retain rows"}),
    ({"prompt": Llama2Chat()}, set()),
])  # fmt: skip
def test_identity_names_what_differs(options, names):
    one = connected(Memory()).identity
    assert list(one) == ["tokenizer", "forget rows", "retain rows"]
    assert changed(one, connected(Memory(**options)).identity) == names


@pytest.mark.parametrize(("options", "same"), [
    ({"prompt": QuestionAnswer("Question: ", "\nAnswer: ")}, True),
    ({"prompt": Llama2Chat()}, False),
    ({"max_length": 500}, True),
    ({"max_length": 26, "too_long": "truncate"}, False),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.* are longer than")
def test_tokens_tell_apart_what_is_trained_and_measured(options, same):
    one, other = connected(Memory()), connected(Memory(**options))
    assert list(one.training_tokens) == ["forget", "retain"]
    for name in one.training_tokens:
        assert (one.training_tokens[name] == other.training_tokens[name]) is same
    assert (
        [each.tokens for each in one.evaluation_sets] == [each.tokens for each in other.evaluation_sets]
    ) is same
    assert one.evaluation_sets[0].tokens == one.training_tokens["forget"]  # one answer a row


def test_identity_names_tokenizer_and_alternates():
    data = connected(Memory())
    one = data.identity
    data.tokenizer = train_tokenizer(["ab"], 260)
    assert changed(one, data.identity) == {"tokenizer"}
    one, same, other = (
        connected(Memory(alternates=Refusals(per_row=3), seed=seed), ("forget", "alternate")).identity
        for seed in (0, 0, 1)
    )
    assert one == same
    assert changed(one, other) == {"alternate answers"}
