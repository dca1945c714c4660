"""Fingerprints: equal where the content is equal, and nowhere else."""

import copy
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from dipo_pl.models.tokenizer import train_tokenizer
from dipo_pl.prompts import ChatTemplate, Llama2Chat, PromptFormat, QuestionAnswer, Rendered
from dipo_pl.rows import Row
from dipo_pl.storage.fingerprints import (
    rows_fingerprint,
    settings_fingerprint,
    texts_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)

ROW = Row((("user", "Who?"),), "Me.", "It was mé.", ("You.", "They."))
OTHER = Row((), "Once.")


class TestRows:
    def test_stays_the_same_from_release_to_release(self):
        # Stored results are compared by it: one JSON array a row, of its fields, each with a line break.
        lines = '[[["user", "Who?"]], "Me.", "It was mé.", ["You.", "They."]]\n[[], "Once.", null, []]\n'
        expected = "67756219b37c76c6aa7fd1dcda12cb52549934e5f4ac2716a72160ff702acb87"
        assert rows_fingerprint([ROW, OTHER]) == hashlib.sha256(lines.encode()).hexdigest() == expected

    def test_is_of_the_content(self):
        twin = Row((("user", "Who?"),), "Me.", "It was mé.", ("You.", "They."))
        assert rows_fingerprint([ROW, OTHER]) == rows_fingerprint(iter((twin, OTHER)))

    @pytest.mark.parametrize("rows", [
        [],
        [ROW],
        [OTHER, ROW],
        [ROW, OTHER, OTHER],
        [replace(ROW, messages=(("system", "Who?"),)), OTHER],
        [replace(ROW, messages=(("user", "Who"),)), OTHER],
        [replace(ROW, messages=(("user", ""), ("user", "Who?"))), OTHER],
        [replace(ROW, answer="Me"), OTHER],
        [replace(ROW, paraphrased_answer="It was me."), OTHER],
        [replace(ROW, paraphrased_answer=None), OTHER],
        [replace(ROW, wrong_answers=("They.", "You.")), OTHER],
        [replace(ROW, wrong_answers=("You.They.",)), OTHER],
        [replace(ROW, wrong_answers=()), OTHER],
    ])  # fmt: skip
    def test_any_change_of_text_place_or_order_shows(self, rows):
        assert rows_fingerprint(rows) != rows_fingerprint([ROW, OTHER])

    def test_alternate_answers_are_of_no_account(self):
        # Results measured on rows are compared by it, and alternates are not measured.
        assert rows_fingerprint([replace(ROW, alternate_answers=("He.",))]) == rows_fingerprint([ROW])


class TestTexts:
    def test_stays_the_same_from_release_to_release(self):
        lines = '["It was mé.", "You."]\n[]\n'
        expected = hashlib.sha256(lines.encode()).hexdigest()
        assert texts_fingerprint([("It was mé.", "You."), ()]) == expected

    @pytest.mark.parametrize("groups", [[], [("a", "b")], [("b", "a"), ()], [("a",), ("b",)], [("ab",), ()]])
    def test_any_change_of_text_place_or_order_shows(self, groups):
        assert texts_fingerprint(groups) != texts_fingerprint([("a", "b"), ()])


TEXTS = ["a cab is a cab", "a back and a cab"]


class TestTokenizer:
    def test_equal_ones_made_apart_and_read_back(self, tmp_path):
        tokenizer = train_tokenizer(TEXTS, 265)
        tokenizer.save_pretrained(tmp_path)
        expected = tokenizer_fingerprint(tokenizer)
        assert len(expected) == 64
        assert tokenizer_fingerprint(train_tokenizer(TEXTS, 265)) == expected
        assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == expected

    def test_use_is_of_no_account(self):
        tokenizer = train_tokenizer(TEXTS, 265)
        before = tokenizer_fingerprint(tokenizer)
        state = tokenizer.backend_tokenizer.to_str()
        tokenizer(["a", "a cab"], padding=True, truncation=True, max_length=3)
        assert tokenizer.backend_tokenizer.to_str() != state
        assert tokenizer_fingerprint(tokenizer) == before

    @pytest.mark.parametrize("change", [
        lambda tokenizer: tokenizer.add_tokens(["cab"]),
        lambda tokenizer: setattr(tokenizer, "eos_token", "<pad>"),
        lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages }}"),
    ])  # fmt: skip
    def test_what_makes_other_ids_shows(self, change):
        tokenizer = train_tokenizer(TEXTS, 265)
        before = tokenizer_fingerprint(tokenizer)
        change(tokenizer)
        assert tokenizer_fingerprint(tokenizer) != before

    def test_other_merges_show(self):
        one, other = (train_tokenizer([text], 260) for text in ("ab ab", "ba ba"))
        assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)


class Bare(PromptFormat):
    def render(self, row, tokenizer):
        return Rendered("")


class TestSettings:
    def test_equal_settings(self):
        assert settings_fingerprint(ChatTemplate("Be kind.")) == settings_fingerprint(
            ChatTemplate("Be kind.")
        )
        assert settings_fingerprint(Bare()) == settings_fingerprint(Bare())

    def test_class_and_every_setting_show(self):
        formats = [
            ChatTemplate(), ChatTemplate("Be kind."), ChatTemplate(date_string="1 Jan 2025"), QuestionAnswer(),
            QuestionAnswer("Q: "), QuestionAnswer(answer_start="A: "), QuestionAnswer("[INST] ", " [/INST]"),
            Llama2Chat(), Bare(),
        ]  # fmt: skip
        assert len({settings_fingerprint(each) for each in formats}) == len(formats)

    def test_settings_that_are_parts_themselves(self):
        def holding(part):
            whole = Bare()
            whole.inner = part
            return settings_fingerprint(whole)

        assert holding(QuestionAnswer()) == holding(QuestionAnswer())
        others = [QuestionAnswer("Q: "), Llama2Chat(), Path("a"), Path("b")]
        assert len({holding(each) for each in others}) == 4


class Model(nn.Module):
    """A matrix, a scalar, and a buffer that is no weight."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6, dtype=dtype).view(2, 3))
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=dtype))
        self.register_buffer("cache", torch.zeros(2))


class TestWeights:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_equal_weights(self, dtype):
        model = Model(dtype)
        assert weights_fingerprint(model) == weights_fingerprint(copy.deepcopy(model))
        assert len(weights_fingerprint(model)) == 64

    def test_of_no_account(self):
        model = Model()
        before = weights_fingerprint(model)
        model.eval().requires_grad_(False)
        model.cache += 1
        assert weights_fingerprint(model) == before

    def test_memory_layout_is_of_no_account(self):
        model, other = Model(), Model()
        other.weight = nn.Parameter(model.weight.detach().T.contiguous().T)
        assert not other.weight.is_contiguous()
        assert weights_fingerprint(model) == weights_fingerprint(other)

    def test_the_least_change_of_one_weight_shows(self):
        model = Model()
        before = weights_fingerprint(model)
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.weight[1, 2] = changed.weight[1, 2].nextafter(torch.tensor(9.0))
        assert weights_fingerprint(changed) != before
        negative_zero = copy.deepcopy(model)
        with torch.no_grad():
            negative_zero.weight[0, 0] = -0.0
        assert weights_fingerprint(negative_zero) != before

    def test_dtype_shape_and_name_show(self):
        # All of the same bytes.
        def fingerprint(name="weight", dtype=torch.float16, shape=(2, 3)):
            return weights_fingerprint(nn.ParameterDict({name: torch.zeros(shape, dtype=dtype)}))

        others = [fingerprint("weights"), fingerprint(dtype=torch.bfloat16), fingerprint(shape=(3, 2))]
        assert len({fingerprint(), *others}) == 4
        assert fingerprint() == fingerprint()

    def test_tied_weights_count_once(self):
        model = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
        untied = weights_fingerprint(model)
        model["two"].weight = model["one"].weight
        assert weights_fingerprint(model) != untied
        assert weights_fingerprint(model) == weights_fingerprint(copy.deepcopy(model))
