"""Answers up to an entity, as the Unlearning Depth Score reads them."""

import pytest
from small_tokenizers import ascii_tokenizer, byte_tokenizer

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.row_encoder import encode, encode_entity
from dipo_pl.errors import InputError
from dipo_pl.prompts import QuestionAnswer
from dipo_pl.rows import Row

BOS = 128
PROMPT = b"Question: Who?\nAnswer: "
LONG = 512


class TestEntity:
    def row(self, entity, answer="In Rome, Italy."):
        return Row((("user", "Who?"),), answer, entity=entity)

    def test_ends_with_the_entity_which_is_to_be_predicted(self):
        encoded = encode_entity(self.row("Rome"), QuestionAnswer(), ascii_tokenizer(), LONG)
        assert encoded == Encoded((BOS, *PROMPT, *b"In Rome"), 1 + len(PROMPT) + 3)

    def test_without_an_entity_it_is_the_answer_without_its_end(self):
        encoded = encode_entity(self.row(None), QuestionAnswer(), ascii_tokenizer(), LONG)
        assert encoded == Encoded((BOS, *PROMPT, *b"In Rome, Italy."), 1 + len(PROMPT))

    def test_a_token_that_holds_some_of_it_belongs_to_it(self):
        tokenizer = byte_tokenizer(("Ġ", "R"), ("m", "e"))
        encoded = encode_entity(self.row("Rom"), QuestionAnswer(), tokenizer, LONG)
        span = tokenizer.convert_ids_to_tokens(encoded.ids[encoded.answer_start :])
        assert span == ["ĠR", "o", "me"]
        whole = encode(self.row("Rom"), "In Rome, Italy.", QuestionAnswer(), tokenizer, LONG)
        assert whole.ids[: len(encoded.ids)] == encoded.ids

    def test_a_plain_text_that_begins_with_it_is_predicted_from_its_second_token(self):
        row = Row((), "Rome fell.", entity="Rome")
        encoded = encode_entity(row, QuestionAnswer(), byte_tokenizer(), LONG)
        assert (len(encoded.ids), encoded.answer_start) == (4, 1)

    @pytest.mark.parametrize(
        ("entity", "length", "line"),
        [
            ("Oslo", LONG, "^the entity 'Oslo' does not stand in the answer of the row that begins 'Who\\?'"),
            (
                "Italy",
                35,
                r"^the entity 'Italy' of the row .* ends at token 38, which data.max_length 35 cuts off",
            ),
        ],
    )
    def test_one_that_cannot_be_predicted_is_refused(self, entity, length, line):
        with pytest.raises(InputError, match=line):
            encode_entity(self.row(entity), QuestionAnswer(), ascii_tokenizer(), length)
