"""Blocks of both chunkings: values by hand where every byte is a token, and against loops over single tokens."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from dipo_pl.data_modules.blocked_texts import muse_blocks, open_unlearning_blocks
from dipo_pl.models.tokenizer import train_tokenizer

# Words of several tokens, characters of several bytes, empty lines within a document.
DOCUMENTS = [
    "The mayor opened the bridge on Monday.\n\nIt had cost 3 million.", "Zoë's café burnt down — nobody was hurt…",
    "No.", "The bridge, the mayor said, opens on Monday; the café does not.",
]  # fmt: skip


def without_bos(tokenizer):
    """As Qwen's: nothing is put before a text, and there is no BOS to be put."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["post_processor"] = None
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)), eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="module")
def of_bytes():
    """Every byte is a token."""
    return train_tokenizer(["a"], 259)


@pytest.fixture(scope="module", params=[True, False], ids=["BOS", "no BOS"])
def tokenizer(request):
    trained = train_tokenizer(DOCUMENTS, 300)
    return trained if request.param else without_bos(trained)


@pytest.mark.parametrize(("chunking", "bos", "documents", "length", "blocks"), [
    # "abc" "\n\n" "defgh" are 10 tokens: 3 blocks of 4 - 1, and one token, filled up with the first block.
    (muse_blocks, True, ["abc", "defgh"], 4, ["<s>abc", "<s>\n\nd", "<s>efg", "<s>h<s>a"]),
    (muse_blocks, True, ["abc", "d"], 4, ["<s>abc", "<s>\n\nd"]),  # the last block is full
    # Less than a block is repeated once.
    (muse_blocks, True, ["abc"], 9, ["<s>abc<s>abc"]),
    (muse_blocks, True, ["abcde"], 9, ["<s>abcde<s>ab"]),
    (muse_blocks, True, ["abcdefgh"], 9, ["<s>abcdefgh"]),
    (muse_blocks, False, ["abc", "defg"], 4, ["abc\n", "\ndef", "gabc"]),
    (open_unlearning_blocks, True, ["abc", "defgh"], 4, ["<s>abc\n", "<s>\ndef", "<s>gh"]),
    (open_unlearning_blocks, True, ["abcdefgh"], 4, ["<s>abcd", "<s>efgh"]),  # without the empty chunk
    # Without BOS a single token predicts nothing.
    (open_unlearning_blocks, False, ["abc", "defg"], 4, ["abc\n", "\ndef"]),
    (open_unlearning_blocks, False, ["abc", "defgh"], 4, ["abc\n", "\ndef", "gh"]),
])  # fmt: skip
def test_by_hand(of_bytes, chunking, bos, documents, length, blocks):
    tokenizer = of_bytes if bos else without_bos(of_bytes)
    found = chunking(documents, tokenizer, length)
    assert [tokenizer.decode(block.ids) for block in found] == blocks
    assert {(each.answer_start, each.closing, each.cut) for each in found} == {(1, 0, False)}


def test_open_unlearning_tokenizes_again_what_it_decoded(of_bytes):
    # The two bytes of é are separated: either half is decoded as U+FFFD, of three bytes, and what is too long is cut.
    blocks = open_unlearning_blocks(["aé b"], of_bytes, 2)
    bos, a, b = of_bytes.bos_token_id, *of_bytes.convert_tokens_to_ids(["a", "b"])
    unknown = of_bytes("\ufffd", add_special_tokens=False)["input_ids"]
    assert [each.ids for each in blocks] == [(bos, a, unknown[0]), (bos, *unknown[:2]), (bos, b)]


@pytest.mark.parametrize("chunking", [muse_blocks, open_unlearning_blocks])
def test_nothing_becomes_no_block(tokenizer, chunking):
    assert chunking([], tokenizer, 8) == []


@pytest.mark.parametrize("length", [2, 3, 7, 16, 40, 999])
@pytest.mark.parametrize("count", [1, 2, 4])
class TestAgainstLoops:
    def stream(self, tokenizer, count):
        text = DOCUMENTS[0]
        for document in DOCUMENTS[1:count]:
            text += "\n\n" + document
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def test_muse(self, tokenizer, length, count):
        stream = self.stream(tokenizer, count)
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        expected = [[]]
        for token in stream:
            if len(expected[-1]) == length:
                expected.append([])
            if not expected[-1]:
                expected[-1] += bos
            expected[-1].append(token)
        for token in list(expected[0]):
            if len(expected[-1]) < length:
                expected[-1].append(token)
        blocks = muse_blocks(DOCUMENTS[:count], tokenizer, length)
        assert [list(each.ids) for each in blocks] == expected
        assert len(blocks) == -(-len(stream) // (length - len(bos)))

    def test_open_unlearning(self, tokenizer, length, count):
        stream = self.stream(tokenizer, count)
        expected = []
        for number in range(len(stream) // length + 1):
            text = tokenizer.decode(stream[number * length : number * length + length])
            ids = tokenizer.encode(text, add_special_tokens=False)[:length]
            if tokenizer.bos_token_id is not None:
                ids.insert(0, tokenizer.bos_token_id)
            if len(ids) >= 2:
                expected.append(ids)
        blocks = open_unlearning_blocks(DOCUMENTS[:count], tokenizer, length)
        assert [list(each.ids) for each in blocks] == expected
