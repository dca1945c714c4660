"""Tokenises a row's prompt and answer together and finds the answer by character offsets."""

from transformers import PreTrainedTokenizerBase

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.prompts import PromptFormat
from dipo_pl.data_modules.rows import Row
from dipo_pl.errors import InputError


def encode(
    row: Row,
    answer: str,
    prompt_format: PromptFormat,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncate: bool = False,
) -> Encoded:
    """The ids of `row`'s prompt followed by `answer`, closed by EOS.

    Prompt and answer are tokenised as one text, because a token may join the end of the one with the
    start of the other; a token that holds any character of the answer belongs to the answer. A prompt
    tokenised alone would guess that boundary wrong.

    Args:
        max_length: tokens, EOS included.
        truncate: cut a longer sequence at `max_length` instead of refusing it.

    Raises:
        InputError: too long, nothing of the answer is left to be predicted, or the tokenizer has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no EOS token: without one an answer has no end")
    rendered = prompt_format.render(row, tokenizer)
    coded = tokenizer(
        rendered.prompt + answer + rendered.closing,
        add_special_tokens=rendered.special_tokens,
        return_offsets_mapping=True,
    )
    ids: list[int] = coded["input_ids"]
    offsets: list[tuple[int, int]] = coded["offset_mapping"]
    answer_at, closing_at = len(rendered.prompt), len(rendered.prompt) + len(answer)
    answer_start = next((index for index, (_, end) in enumerate(offsets) if end > answer_at), len(ids))
    last = next(
        (i for i in reversed(range(len(ids))) if offsets[i][1] > answer_at and offsets[i][0] < closing_at), 0
    )
    # Some tokenizers end a turn with a token of their own (<|eot_id|>) that generation also stops at.
    if not rendered.closing and ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    cut = len(ids) > max_length
    if cut and not truncate:
        raise InputError(
            f"{len(ids)} tokens, more than data.max_length {max_length}, in the row that begins "
            f"{(row.question or answer)[:60]!r}: raise data.max_length (up to the model's context) or set "
            "data.too_long to truncate"
        )
    ids = ids[:max_length]
    answer_start = max(answer_start, 1)
    if answer_start >= len(ids):
        raise InputError(
            f"no answer token is left in the row that begins {(row.question or answer)[:60]!r}: its answer "
            f"is {answer[:60]!r}, its prompt {answer_start} tokens, data.max_length {max_length}"
        )
    # Where nothing of the answer can be predicted, what closes it stands for it.
    closing = max(len(ids) - 1 - max(last, answer_start), 0)
    return Encoded(tuple(ids), answer_start, closing, cut)
