"""What a model gives for a batch: the first tokens of its own answers, known from teacher forcing."""

import pytest
import torch
from tiny_models import lively_model

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.evaluation_sets import EvaluationBatches
from dipo_pl.metrics.observations import Observations


@torch.no_grad()
def greedy(model, prompt, count):
    """Whole sequences, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("wrong_answers", [0, 2])
def test_the_first_tokens_of_a_generated_answer_are_known_as_far_as_the_answer_is_that(wrong_answers):
    model = lively_model("llama")
    prompts = (5, 6, 7), (8,), (9, 10), (11, 12, 13, 14)
    said = [greedy(model, prompt, 6) for prompt in prompts]
    other = [[(token + 1) % 259 for token in each] for each in said]
    answers = [
        said[0],
        # Tokens that follow a wrong one say nothing, though they are right by chance.
        [*said[1][:3], other[1][3], *said[1][4:]],
        other[2],
        [*said[3][:5], other[3][5]],
    ]
    rows = [
        [
            Encoded((*prompt, *answer), len(prompt), closing=1),
            *(Encoded((*prompt, *tokens, 1), len(prompt)) for _ in range(wrong_answers)),
        ]
        for prompt, answer, tokens in zip(prompts, answers, other, strict=True)
    ]
    with torch.no_grad():
        seen = Observations.of_model(model, EvaluationBatches(rows)[[0, 1, 2, 3]])
    assert seen.greedy == [said[0], said[1][:4], said[2][:1], said[3]]
