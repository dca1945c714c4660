"""Time and memory of an evaluation, side by side: `make bench OPTIONS=--evaluation`.

A Llama 384 wide with 6 layers and a vocabulary of 32,000, random weights, float32; rows as long as those of TOFU's
forget10_perturbed, each with 7 answers. Every case is a process of its own, and time is its processor time with
one thread, since other work on the machine would make wall times wrong.

    teacher-forced   nats per token of every answer. Plain: the model's own forward pass, with all its logits, for
                     each of the 7 answers in turn; rows one at a time, or in batches in the order of the set, padded
                     to the longest answer of the batch, or of the set (TOFU's own code pads all to 200); or all answers
                     of all rows together, sorted by length, which leaves next to no padding
    generation       greedy. Plain: transformers' generate, one row at a time, or in batches in the order of the set.
                     The model counts down from a prompt's last token, so that it writes as much as TOFU's
                     answers have (and stops with EOS), though all its layers are computed

Losses must agree to 1e-5 and texts must be the same, or it fails. Peaks are of the resident set, beyond the
weights, on 64 rows.
"""

import argparse
import json
import os
import random
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from worker import MIB, ResidentMemory

from dipo_pl.batch import Encoded, collate
from dipo_pl.data_modules.evaluation_sets import evaluation_batches
from dipo_pl.models.answer_scores import answer_scores
from dipo_pl.models.generation import generate
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import answer_states
from dipo_pl.models.prompt_packing import row_states

T = TypeVar("T")

# Forked from a server that has imported these, a process starts in no time and still computes alone.
FORKSERVER = get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["transformers.models.llama.modeling_llama", "dipo_pl.metrics.observations"]
)

VOCABULARY, EOS = 32_000, 1_000
# Of TOFU's forget10_perturbed with QuestionAnswer and a byte-pair tokenizer of 8,000 tokens, at every 20th.
PROMPTS = (14, 21, 22, 23, 23, 24, 24, 25, 26, 26, 27, 27, 28, 28, 29, 29, 31, 32, 34, 37, 62)
ANSWERS = (4, 14, 19, 23, 25, 27, 29, 31, 32, 33, 36, 37, 39, 41, 43, 45, 47, 50, 55, 59, 105)
# The other six answers to a question are longer than the original by about a fifth. The last five, which are wrong, say
# what the first of the six says until they differ: 26 % of all answer tokens there follow the same tokens as in another.
OTHERS = (0.9, 1.0, 1.2, 1.2, 1.3, 1.5)
ALIKE = 0.4
TOKENS = 8192


def rows(count: int) -> list[list[Encoded]]:
    draw = random.Random(0)

    def between(quantiles: Sequence[int]) -> int:
        place = draw.randrange(len(quantiles) - 1)
        return draw.randint(*quantiles[place : place + 2])

    made = []
    for _ in range(count):
        prompt, original = between(PROMPTS), between(ANSWERS)
        # A countdown from the last token of the prompt is what the model says.
        shared = [*(draw.randrange(2_000, VOCABULARY) for _ in range(prompt - 1)), EOS + original]
        lengths = [original, *(max(2, round(original * share)) for share in OTHERS)]
        answers = [[draw.randrange(2_000, VOCABULARY) for _ in range(length)] for length in lengths]
        for wrong in answers[2:]:
            same = round(ALIKE * len(answers[1]))
            wrong[:same] = answers[1][:same]
        made.append([Encoded((*shared, *answer), prompt) for answer in answers])
    return made


def counting_model() -> LlamaForCausalLM:
    """After token EOS + n it says EOS + n - 1: its head holds each token's successor, and layers add little."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6,
        max_position_embeddings=512, eos_token_id=EOS,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight.normal_()
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.mul_(0.1)
        model.lm_head.weight[EOS : EOS + 600] = embedding[EOS + 1 : EOS + 601] * 0.1
    return model


Losses = dict[int, list[float]]
Texts = dict[int, str]


@torch.inference_mode()
def plain_losses(model: LlamaForCausalLM, sets: list[list[Encoded]], option: tuple[int, bool]) -> Losses:
    size, pads_to_set = option
    longest = max(len(answer.ids) for row in sets for answer in row) if pads_to_set else 0
    losses: Losses = {row: [] for row in range(len(sets))}
    for column in range(len(sets[0])):
        for start in range(0, len(sets), size):
            answers = [row[column] for row in sets[start : start + size]]
            batch = collate({"answers": answers}, range(len(answers)))
            padding = (0, max(0, longest - batch.input_ids.shape[1]))
            ids, mask = (functional.pad(each, padding) for each in (batch.input_ids, batch.attention_mask))
            logits = model(ids, attention_mask=mask).logits.float()
            for row, answer in enumerate(answers):
                predicted = logits[row, answer.answer_start - 1 : len(answer.ids) - 1]
                wanted = torch.tensor(answer.ids[answer.answer_start :])
                losses[start + row].append(functional.cross_entropy(predicted, wanted).item())
    return losses


@torch.inference_mode()
def sorted_losses(model: LlamaForCausalLM, sets: list[list[Encoded]], tokens: int) -> Losses:
    losses: Losses = {row: [0.0] * len(answers) for row, answers in enumerate(sets)}
    every = [
        ([answer], row, column) for row, answers in enumerate(sets) for column, answer in enumerate(answers)
    ]
    for batch in evaluation_batches([each[0] for each in every], tokens):
        for place, loss in plain_losses(
            model, [every[each][0] for each in batch], (len(batch), False)
        ).items():
            _, row, column = every[batch[place]]
            losses[row][column] = loss[0]
    return losses


@torch.inference_mode()
def our_losses(model: LlamaForCausalLM, sets: list[list[Encoded]], share: bool) -> Losses:
    losses: Losses = {}
    for rows in evaluation_batches(sets, TOKENS):
        every = [row for row in rows for _ in sets[row]]
        batch = collate({"answers": [answer for row in rows for answer in sets[row]]}, every)
        places: Tensor | None = None
        if share:
            states, places = row_states(model, batch, len(rows))
        else:
            states = answer_states(model, batch)[None]
        nothing = torch.zeros_like(batch.targets, dtype=torch.bool)
        head = OutputHead.of(model)
        nll, _ = answer_scores(states, batch.targets, batch.lengths, head, nothing, places=places)
        losses |= zip(rows, nll.view(len(rows), -1).tolist(), strict=True)
    return losses


TOKENIZER: Any = SimpleNamespace(
    eos_token_id=EOS,
    batch_decode=lambda rows, skip_special_tokens: [
        " ".join(str(token) for token in row if token != EOS) for row in rows
    ],
)


@torch.inference_mode()
def plain_texts(model: LlamaForCausalLM, sets: list[list[Encoded]], size: int) -> Texts:
    texts: list[str] = []
    prompts = [list(row[0].ids[: row[0].answer_start]) for row in sets]
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        width = max(map(len, some))
        output = model.generate(
            input_ids=torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in some]),
            attention_mask=torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in some]),
            max_new_tokens=200, do_sample=False, eos_token_id=EOS, pad_token_id=EOS,
        )  # fmt: skip
        texts += TOKENIZER.batch_decode(output[:, width:].tolist(), skip_special_tokens=True)
    return dict(enumerate(texts))


def our_texts(model: LlamaForCausalLM, sets: list[list[Encoded]], size: int) -> Texts:
    order = [row for batch in evaluation_batches(sets, TOKENS) for row in batch]
    prompts = [list(sets[row][0].ids[: sets[row][0].answer_start]) for row in order]
    texts: Texts = {}
    for start in range(0, len(order), size):
        made = generate(model, TOKENIZER, prompts[start : start + size], 200)
        texts |= zip(order[start : start + size], made, strict=True)
    return texts


@dataclass(frozen=True)
class Case:
    part: str
    name: str
    run: Callable[..., Any]
    option: Any
    ours: bool = False


CASES = {
    case.name: case
    for case in (
        Case("teacher-forced", "plain, one row at a time", plain_losses, (1, False)),
        Case("teacher-forced", "plain, batches of 16 rows", plain_losses, (16, False)),
        Case("teacher-forced", "plain, padded to the set's longest", plain_losses, (16, True)),
        Case("teacher-forced", "plain, sorted by length", sorted_losses, 2048),
        Case("teacher-forced", "ours, nothing shared", our_losses, False, ours=True),
        Case("teacher-forced", "ours", our_losses, True, ours=True),
        Case("generation", "transformers, one row at a time", plain_texts, 1),
        Case("generation", "transformers, batches of 64", plain_texts, 64),
        Case("generation", "transformers, batches of 16", plain_texts, 16),
        Case("generation", "ours, batches of 16", our_texts, 16, ours=True),
        Case("generation", "ours, batches of 64", our_texts, 64, ours=True),
    )
}


def seconds(name: str, count: int) -> tuple[float, Any]:
    """Of processor time, and the values. Runs in a fresh process."""
    torch.set_num_threads(1)
    case, model, sets = CASES[name], counting_model(), rows(count)
    case.run(model, sets[:2], case.option)
    start = process_time()
    values = case.run(model, sets, case.option)
    return process_time() - start, values


def peak_mib(name: str, count: int) -> float:
    """Runs in a fresh process, which no time is taken of: giving memory back at once is slow."""
    torch.set_num_threads(1)
    case, model, sets = CASES[name], counting_model(), rows(count)
    memory = ResidentMemory()
    case.run(model, sets[:2], case.option)
    before = memory.now()
    memory.reset_peak()
    case.run(model, sets, case.option)
    return (memory.peak() - before) / MIB


def in_process(function: Callable[..., T], *arguments: Any) -> T:
    with ProcessPoolExecutor(1, mp_context=FORKSERVER) as process:
        return process.submit(function, *arguments).result()


def disagreement(case: Case, values: Any, plain: Any) -> str | None:
    if case.part == "generation":
        wrong = [row for row in plain if plain[row] != values[row]]
        return f"{case.name}: {len(wrong)} texts differ, the first at row {wrong[0]}" if wrong else None
    pairs = [pair for row in plain for pair in zip(values[row], plain[row], strict=True)]
    worst = max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)
    return f"{case.name}: a loss differs by {worst:.2g}" if worst > 1e-5 else None


def main(options: argparse.Namespace) -> int:
    options.rows = options.rows or 192
    cases = {
        name: case
        for name, case in CASES.items()
        if any(part in f"{case.part}, {name}" for part in options.cases)
    }
    taken: dict[str, list[float]] = {name: [] for name in cases}
    plain: dict[str, Any] = {}
    for turn in range(options.rounds):
        for name, case in cases.items() if turn % 2 == 0 else reversed(cases.items()):
            time, values = in_process(seconds, name, options.rows)
            taken[name].append(time)
            print(f"round {turn + 1} of {options.rounds}: {name}: {time:.2f} s", flush=True)
            if wrong := disagreement(case, values, plain.setdefault(case.part, values)):
                print(wrong)
                return 1
    peaks = {name: in_process(peak_mib, name, min(options.rows, 64)) for name in cases}
    medians = {name: statistics.median(each) for name, each in taken.items()}
    print(f"\n{options.rows} rows, processor time of one thread, {options.rounds} rounds")
    results = []
    for part in ("teacher-forced", "generation"):
        others = [name for name, case in cases.items() if case.part == part and not case.ours]
        print(f"\n{part:36}{'seconds':>9}{'MiB':>8}  times faster than")
        for name, case in cases.items():
            if case.part != part:
                continue
            ratios = {other: medians[other] / medians[name] for other in others}
            shown = ", ".join(f"{ratio:.2f} {other}" for other, ratio in ratios.items()) if case.ours else ""
            print(f"{name:36}{medians[name]:9.2f}{peaks[name]:8,.0f}  {shown}")
            results.append(
                {
                    "part": part,
                    "case": name,
                    "rows": options.rows,
                    "threads": 1,
                    "clock": "processor",
                    "cores": os.cpu_count(),
                    "seconds": medians[name],
                    "peak_mib": peaks[name],
                    "faster_than": ratios,
                }
            )
    output: Path = options.output.with_name("evaluation.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{output}")
    return 0
