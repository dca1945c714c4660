"""Training of a byte-level BPE tokenizer on given texts, for models with random weights."""

import re
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dipo_pl.errors import InputError

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
BYTES = 256
# Longest run of characters without a gap: the time to learn merges grows with its square.
LONGEST_WORD = 1000


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer, which can encode any text and puts BOS before every sequence.

    Args:
        texts: the training texts.
        vocab_size: largest number of tokens; fewer if the texts are short.

    Raises:
        InputError: the vocabulary cannot hold the bytes and the special tokens.
    """
    smallest = BYTES + 3
    if vocab_size < smallest:
        raise InputError(
            f"model.policy.vocab_size must be at least {smallest}, one for each byte and special token (got {vocab_size})"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (piece for text in texts for piece in _pieces(text)),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS, EOS, PAD],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def _pieces(text: str) -> list[str]:
    """Return the text, split where a word or a gap between words is too long."""
    return re.sub(rf"\S{{{LONGEST_WORD}}}|\s{{{LONGEST_WORD}}}", "\\g<0>\0", text).split("\0")
