"""A prompt computed once gives the hidden states of every answer computed by itself."""

import pytest
import torch
from tiny_models import ARCHITECTURES, lively_model
from torch.testing import assert_close

from dipo_pl.batch import Encoded, collate
from dipo_pl.models import prompt_packing as shared_prompt
from dipo_pl.models.hidden_states import decoder_states
from dipo_pl.models.prompt_packing import row_states


def model_of(family, window=64):
    return lively_model(family, **({"sliding_window": window} if family == "gemma2" else {}))


def row(prompt, *answers):
    return [Encoded((*prompt, *answer), len(prompt)) for answer in answers]


def rows_of(counts, seed=0):
    """Rows of (prompt tokens, tokens of each answer)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length):
        return torch.randint(3, 259, (length,), generator=generator).tolist()

    return [row(draw(prompt), *(draw(answer) for answer in answers)) for prompt, answers in counts]


def batch_of(rows):
    return collate(
        {"answers": [answer for answers in rows for answer in answers]}, range(sum(map(len, rows)))
    )


def every_state(model, rows):
    """Of each answer token."""
    states, places = row_states(model, batch_of(rows), len(rows))
    return states[places]


@torch.no_grad()
def one_at_a_time(model, rows):
    """Unpadded; the state before each answer token."""
    states = []
    for answers in rows:
        for answer in answers:
            ids = torch.tensor([answer.ids])
            whole = decoder_states(model, ids, torch.ones_like(ids))[0]
            states.append(whole[answer.answer_start - 1 : -1])
    return torch.cat(states)


@pytest.fixture
def forwards(monkeypatch):
    """The shapes of the batches that the decoder is given."""
    shapes = []

    def counted(model, input_ids, *arguments, **options):
        shapes.append(tuple(input_ids.shape))
        return decoder_states(model, input_ids, *arguments, **options)

    monkeypatch.setattr(shared_prompt, "decoder_states", counted)
    monkeypatch.setattr("dipo_pl.models.hidden_states.decoder_states", counted)
    return shapes


COUNTS = [(12, (3, 5, 4)), (9, (1, 1, 6)), (14, (5, 2, 3))]


@pytest.mark.parametrize(
    ("family", "kernel"),
    [
        (family, kernel)
        for family in ARCHITECTURES
        for kernel in ("sdpa", "eager")
        if (family, kernel) != ("gemma2", "sdpa")
    ],
)
def test_states_are_those_of_answers_by_themselves(family, kernel, forwards):
    model = model_of(family)
    model.set_attn_implementation(kernel)
    rows = rows_of(COUNTS)
    with torch.no_grad():
        states = every_state(model, rows)
    # 12 + 9, 9 + 5 and 14 + 7 tokens: the last one of an answer predicts nothing.
    assert forwards[-1] == (3, 21)
    assert_close(states, one_at_a_time(model, rows), rtol=1e-4, atol=1e-5)


def test_windows_shorter_than_a_sequence_are_not_packed(forwards):
    model = model_of("gemma2", window=6)
    rows = rows_of(COUNTS)
    with torch.no_grad():
        states = every_state(model, rows)
    # A trial of the model on (2, 5) tokens comes first, whatever the batch.
    assert forwards == [(2, 5), (1, 5), (9, 19)]
    assert_close(states, one_at_a_time(model, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_what_answers_begin_with_is_computed_once(kernel, forwards, monkeypatch):
    monkeypatch.setattr(shared_prompt._PackedRows, "is_cheaper", lambda *_: True)
    model = model_of("llama")
    model.set_attn_implementation(kernel)
    rows = [
        # 5 6 7 | 8 9 10 | 8 9 11 12 | the first one again: 3 + 2 + 1 nodes, as 8 9 is followed by what predicts nothing.
        row((5, 6, 7), (8, 9, 10), (8, 9, 11, 12), (8, 9, 10)),
        # 4 | 3 3 3, within which the others end: 1 + 2 nodes; then 2 3 | 4 5 6, 7, 7 8: 2 + 2 + 1.
        row((4,), (3,), (3, 3, 3), (3, 3)),
        row((2, 3), (4, 5, 6), (7,), (7, 8)),
    ]
    with torch.no_grad():
        states, places = row_states(model, batch_of(rows), 3)
    # Trees of 6, 3 and 5 nodes; the last two would fit in none together with the first.
    assert forwards[-1] == (3, 6)
    # Of 3 + 4 + 3, 1 + 3 + 2 and 3 + 1 + 2 answer tokens.
    assert len(places) == 22
    assert states.shape[0] == 4 + 3 + 4
    assert_close(states[places], one_at_a_time(model, rows), rtol=1e-4, atol=1e-5)


def test_short_trees_share_a_sequence(forwards):
    model = model_of("llama")
    rows = rows_of([(5, (3, 2)), (20, (6, 7)), (4, (2, 4)), (6, (1, 2)), (3, (2, 2))])
    with torch.no_grad():
        states = every_state(model, rows)
    # 5 + 3, 20 + 11, 4 + 4, 6 + 1 and 3 + 2 nodes: the four short ones follow each other.
    assert forwards[-1] == (2, 31)
    assert_close(states, one_at_a_time(model, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [
    # A token may join the end of the prompt with the start of one answer: that answer starts earlier.
    [[Encoded((5, 6, 7, 8, 9), 3), Encoded((5, 6, 17, 9), 2), Encoded((5, 6, 7, 8, 4), 3)]],
    # Answers that begin alike, one of them within another; nothing in common; a prompt of one token.
    [row((5, 6, 7), (8, 9), (8, 9, 10), (8, 4)), row((1, 2, 3), (4,), (4,), (5,))],
    [[Encoded((1, 2, 3), 1), Encoded((4, 5, 6, 7), 2), Encoded((8, 9), 1)]],
    [row((5,), (6, 7), (8,), (9,))],
    # Prompts that part and meet again.
    [[*row((5, 6, 7, 8), (9, 4)), *row((5, 3, 7, 8), (9, 4)), *row((5, 6, 7, 8), (2,))]],
], ids=["boundaries", "alike", "nothing", "one token", "other prompts"])  # fmt: skip
def test_awkward_rows(rows, monkeypatch):
    monkeypatch.setattr(shared_prompt._PackedRows, "is_cheaper", lambda *_: True)
    model = model_of("llama")
    with torch.no_grad():
        states = every_state(model, rows)
    assert_close(states, one_at_a_time(model, rows), rtol=1e-4, atol=1e-5)


def test_what_is_not_packed(forwards):
    rows = rows_of(COUNTS)
    model = model_of("llama")
    alone = [answers[:1] for answers in rows]
    long = rows_of([(2, (80,) * 7)])  # attention over 555 tokens would cost more than is saved
    with torch.no_grad():
        row_states(model, batch_of(alone), 3)
        row_states(model, batch_of(long), 1)
        row_states(model.train(), batch_of(rows), 3)
    assert forwards == [(3, 19), (2, 5), (1, 5), (7, 82), (9, 19)]


def test_layers_that_carry_a_state_from_token_to_token_are_not_packed():
    model = model_of("qwen2")
    assert shared_prompt._may_pack(model)
    model.config.layer_types = ["linear_attention", "full_attention"]
    assert not shared_prompt._may_pack(model)


def test_a_model_that_does_not_understand_the_mask_is_found_out(forwards, monkeypatch):
    model = model_of("llama")
    decoder = model.get_decoder()
    forward = decoder.forward

    def without_mask(*arguments, attention_mask=None, **options):
        kept = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        return forward(*arguments, attention_mask=kept, **options)

    monkeypatch.setattr(decoder, "forward", without_mask)
    rows = rows_of(COUNTS)
    with torch.no_grad():
        states = every_state(model, rows)
    assert forwards[-1] == (9, 19)
    assert_close(states, one_at_a_time(model, rows), rtol=1e-4, atol=1e-5)


def test_under_autocast():
    model = model_of("llama")
    rows = rows_of(COUNTS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = every_state(model, rows)
    assert_close(states.float(), one_at_a_time(model, rows), rtol=0.1, atol=0.15)
