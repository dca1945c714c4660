"""Blocks: documents as one stream of tokens, cut into training sequences of fixed length.

Both chunkings join the documents with an empty line and tokenize the text once. In their sequences every token but the
first is predicted, and no EOS is added.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dipo_pl.batch import Encoded


def muse_blocks(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Encoded]:
    """Cut N tokens into ceil(N / (length - 1)) blocks of `length` tokens, each beginning with BOS.

    The last block is filled up with the beginning of the first block, BOS included, once: where all documents together
    have n < length / 2 ids with BOS, there is one block of 2 n ids. With a tokenizer without BOS, blocks have `length`
    tokens of the text.

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
    """Cut the tokens into chunks of `length`, decode each and tokenize it again with the tokenizer's special tokens.

    A chunk may change on the way: its first token may lose or gain a space, and a character of several tokens may be cut
    in two. BOS and at most `length` tokens of the result are kept, one more than in MUSE's blocks; the last chunk is
    shorter. open-unlearning makes N // length + 1 chunks, of which the last is empty where `length` divides N; like any
    sequence of a single token it predicts nothing, and is left out here.

    Source: open-unlearning, https://github.com/locuslab/open-unlearning at d3d7cf9: `PretrainingDataset` in
    src/data/pretraining.py, `preprocess_pretraining_instance` in src/data/utils.py.
    """
    longest = len(tokenizer("")["input_ids"]) + length
    texts = (tokenizer.decode(chunk) for chunk in _chunks(documents, tokenizer, length))
    blocks = (tuple(tokenizer(text)["input_ids"][:longest]) for text in texts)
    return [Encoded(block, answer_start=1) for block in blocks if len(block) > 1]


def _chunks(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    # verbose=False silences the warning that the text is longer than the model's context.
    coded = tokenizer("\n\n".join(documents), add_special_tokens=False, verbose=False)
    tokens: list[int] = coded["input_ids"]
    return [tokens[at : at + length] for at in range(0, len(tokens), length)]
