"""Encoding of a row's prompt and answer as token ids."""

from transformers import PreTrainedTokenizerBase

from dipo_pl.batch import Encoded
from dipo_pl.errors import InputError
from dipo_pl.prompts import PromptFormat, Rendered
from dipo_pl.rows import Row


def encode(
    row: Row,
    answer: str,
    prompt_format: PromptFormat,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncate: bool = False,
) -> Encoded:
    """Return the ids of `row`'s prompt followed by `answer` and EOS.

    Prompt and answer are tokenized as one text, because a token may join the end of one with the start of the other; a
    token that contains any character of the answer belongs to the answer. The prompt is tokenized separately only where
    its format asks for it.

    Args:
        row: the row whose messages are the prompt.
        answer: the answer, which may differ from the row's own.
        prompt_format: the prompt format.
        tokenizer: a fast tokenizer.
        max_length: maximum length in tokens, EOS included.
        truncate: cut a longer sequence at `max_length` instead of refusing it.

    Raises:
        InputError: the sequence is too long, no answer token is left to be predicted, or the tokenizer has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no EOS token: without one an answer has no end")
    rendered = prompt_format.render(row, tokenizer)
    ids, offsets = _tokens(rendered, answer, tokenizer)
    answer_at, closing_at = len(rendered.prompt), len(rendered.prompt) + len(answer)
    answer_start = next((index for index, (_, end) in enumerate(offsets) if end > answer_at), len(ids))
    last = next(
        (i for i in reversed(range(len(ids))) if offsets[i][1] > answer_at and offsets[i][0] < closing_at), 0
    )
    # Some templates end a turn with their own token (<|eot_id|>), at which generation also stops.
    if not rendered.closing and ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    begins = f"the row that begins {(row.question or answer)[:60]!r}"
    cut = len(ids) > max_length
    if cut and not truncate:
        raise InputError(
            f"{begins} has {len(ids)} tokens, more than data.max_length {max_length}: raise it, up to the model's context, "
            "or set data.too_long to truncate"
        )
    ids = ids[:max_length]
    answer_start = max(answer_start, 1)
    if answer_start >= len(ids):
        raise InputError(
            f"no answer token is left in {begins}: its answer is {answer[:60]!r}, its prompt {answer_start} tokens, "
            f"data.max_length {max_length}"
        )
    # Where no token of the answer can be predicted, the closing stands for it.
    closing = max(len(ids) - 1 - max(last, answer_start), 0)
    return Encoded(tuple(ids), answer_start, closing, cut)


def _tokens(
    rendered: Rendered, answer: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ids of the whole text and the range of characters of each."""
    after = answer + rendered.closing
    first = rendered.prompt if rendered.apart else rendered.prompt + after
    coded = tokenizer(first, add_special_tokens=rendered.special_tokens, return_offsets_mapping=True)
    ids, offsets = list(coded["input_ids"]), list(coded["offset_mapping"])
    if rendered.apart:
        rest = tokenizer(after, add_special_tokens=False, return_offsets_mapping=True)
        ids += rest["input_ids"]
        offsets += [(start + len(first), end + len(first)) for start, end in rest["offset_mapping"]]
    return ids, offsets
