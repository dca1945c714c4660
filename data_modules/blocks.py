"""Documents as one stream of tokens, cut into training sequences of a fixed length: MUSE's way, and open-unlearning's.

Both join the documents with an empty line and tokenise that text once. Sequences of both predict all of their tokens
but the first one, and nothing closes them.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dipo_pl.batch import Encoded


def muse_blocks(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Encoded]:
    """N tokens as ceil(N / (length - 1)) blocks of `length`, BOS before each.

    The last block goes on with the first one, BOS and all, once: where all documents together have n < length / 2
    ids with BOS, there is one block of 2 n. A tokenizer without BOS gives blocks of `length` tokens of the text.

    Source: MUSE, arXiv:2407.06460; `DefaultDataset` in baselines/dataset.py of
    https://github.com/jaechan-repo/muse_bench, for its .txt files.
    """
    start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    chunks = _chunks(documents, tokenizer, length - len(start))
    blocks = [(*start, *chunk) for chunk in chunks]
    blocks[-1:] = [(last + blocks[0])[:length] for last in blocks[-1:]]
    return [Encoded(block, answer_start=1) for block in blocks]


def open_unlearning_blocks(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[Encoded]:
    """Chunks of `length` tokens, written out as texts and tokenised anew, with what the tokenizer puts before a text.

    A chunk need not come back as it was: its first token may lose or gain a space, a character of several tokens may
    be cut in two. Of what it has become, BOS and `length` tokens are kept, one more than in MUSE's blocks; the last
    chunk is as short as it is. open-unlearning has N // length + 1 chunks, and so an empty one where `length` divides
    N: like any sequence of a single token it predicts nothing, and is left out here.

    Source: open-unlearning, https://github.com/locuslab/open-unlearning at d3d7cf9: `PretrainingDataset` in
    src/data/pretraining.py, `preprocess_pretraining_instance` in src/data/utils.py.
    """
    longest = len(tokenizer("")["input_ids"]) + length
    texts = (tokenizer.decode(chunk) for chunk in _chunks(documents, tokenizer, length))
    blocks = (tuple(tokenizer(text)["input_ids"][:longest]) for text in texts)
    return [Encoded(block, answer_start=1) for block in blocks if len(block) > 1]


def _chunks(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    # verbose: the warning that so long a text does not fit into the model.
    coded = tokenizer("\n\n".join(documents), add_special_tokens=False, verbose=False)
    tokens: list[int] = coded["input_ids"]
    return [tokens[at : at + length] for at in range(0, len(tokens), length)]
