"""Small tokenizers in which every id is known beforehand."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def ascii_tokenizer(start=("<s>",), end=(), specials=("<s>", "</s>"), eos="</s>", **options):
    """One token a character, its id the character's ASCII code; special tokens from 128 on, in their order."""
    numbers = {token: 128 + index for index, token in enumerate(specials)}
    vocabulary = {chr(code): code for code in range(128)} | numbers
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*start, "$A", *end], special_tokens=[(token, numbers[token]) for token in {*start, *end}]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, additional_special_tokens=list(specials), **options
    )


def byte_tokenizer(*merges):
    """Byte-level BPE with these merges and no special token but EOS, which has the first id after the bytes."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["</s>"] = len(vocabulary)
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
