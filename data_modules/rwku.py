"""RWKU: a data module of famous people, some of whom a pretrained model is to forget."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.record_files import Placed, content_of, load_split, read_records
from dipo_pl.data_modules.requests import listed
from dipo_pl.data_modules.row_files import text_at, texts_at
from dipo_pl.errors import InputError, check_count
from dipo_pl.evaluation_set import EvaluationSet, RowSets
from dipo_pl.paths import expanded
from dipo_pl.prompts import ChatTemplate, PromptFormat, Rendered
from dipo_pl.rows import Row

# Files of the hub's repository, in its folder All, by the name of their configuration.
FILES = {
    "train_original_passage": "passage.json",
    "train_positive_llama3": "positive.json",
    "train_positive_phi3": "positive_phi.json",
    "forget_level1": "forget_level1.json",
    "forget_level2": "forget_level2.json",
    "forget_level3": "forget_level3.json",
    "neighbor_level1": "neighbor_level1.json",
    "neighbor_level2": "neighbor_level2.json",
    "mia_forget": "forget_mia.json",
    "mia_retain": "retain_mia.json",
    "utility_general": "retain_mmlu.json",
    "utility_reason": "retain_bbh.json",
    "utility_factuality": "triviaqa.json",
}
LETTERS = "ABCD"
BLANK = "Please complete the blank in the following question.\nQuestion: {}\n"
BRIEFLY = "Please briefly answer the following question.\n"
# Maximum length in tokens of an answer to a probe, and of one with its reasoning.
ANSWER_TOKENS, REASONING_TOKENS = 30, 256

Corpus = Literal["train_original_passage", "train_positive_llama3", "train_positive_phi3"]


class Probe(PromptFormat):
    r"""Format of RWKU's probes: the assistant's turn begins with `Answer:`, if the question ends in a line break.

    An affirmative suffix asks for another beginning, so its question ends without one.

    Source: RWKU, `eval_forget.py` in https://github.com/jinzhuoran/RWKU.

    Args:
        chat: the format of the question.
    """

    def __init__(self, chat: ChatTemplate) -> None:
        self.chat = chat
        self.answering = copy.copy(chat)
        # The space goes to the answer's first token.
        self.answering.prefill = "Answer: "

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        """Return the conversation up to the answer."""
        chosen = self.answering if row.question.endswith("\n") else self.chat
        return chosen.render(row, tokenizer)


class RWKU(ForgetRetain):
    """Data module of the RWKU benchmark (Jin et al. 2024, arXiv:2406.10890): 200 famous people whom models know anyway.

    Texts about the people to forget are trained on, with texts about others as retained; RWKU itself retains nothing.

    Evaluation sets: `forget` and `retain`, the texts, for losses alone; `forget_level1` (blanks), `forget_level2`
    (questions), `forget_level3` (attacks) and `neighbor_level1`, `neighbor_level2` (related facts that must be kept), whose
    metric is `rouge_l_recall` of answers of 30 tokens; `mia_forget` and `mia_retain`, texts; `utility_general` (MMLU, the
    probability of the true letter among four), `utility_reason` (BBH) and `utility_factuality` (TriviaQA). Each has the
    rows that RWKU gives to the people to forget. RWKU's `utility_truthfulness` and `utility_fluency` are not read: the first
    has rows with different numbers of wrong answers, the second has no answers.

    Args:
        path: `jinzhuoran/RWKU` on the hub, a copy of its repository, or a folder with files named as there in `All`.
        people: the people to forget, one name or several, as in the column `subject`.
        corpus: the texts about a person: passages of Wikipedia, or what Llama-3 or Phi-3 wrote.
        retain_people: texts about how many others are retained, the first in the corpus who are not forgotten.
        options: arguments of ForgetRetain; evaluation sets that `evaluate` does not name are not read.
    """

    def __init__(
        self,
        path: str = "jinzhuoran/RWKU",
        people: str | list[str] = "Stephen King",
        corpus: Corpus = "train_original_passage",
        retain_people: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_count("data.retain_people", retain_people)
        self.path = expanded(path)
        self.people = listed(people, "data.people")
        self.corpus = corpus
        self.retain_people = retain_people

    @property
    def settings(self) -> dict[str, Any]:
        """The people whose rows are measured."""
        return {"people": ", ".join(self.people)}

    def read(self) -> RowSets:
        """Read the texts and the sets that are measured."""
        texts: dict[str, list[Row]] = {}
        for where, record in self._records(self.corpus):
            texts.setdefault(text_at(record, "subject", where), []).append(_text(record, where))
        if unknown := [each for each in self.people if each not in texts]:
            raise InputError(
                f"data.people must name people of RWKU's {self.corpus}, such as {', '.join([*texts][:3])} "
                f"(got {unknown[0]!r})"
            )
        others = [each for each in texts if each not in self.people]
        if self.retain_people > len(others):
            raise InputError(
                f"data.retain_people must be at most {len(others)}, the people in {self.corpus} who are not forgotten "
                f"(got {self.retain_people})"
            )
        forget = [row for each in self.people for row in texts[each]]
        retain = [row for each in others[: self.retain_people] for row in texts[each]]
        sets = {
            name: EvaluationSet(name, rows, new_tokens=0)
            for name, rows in (("forget", forget), ("retain", retain))
        }
        measured = [name for name in FILES if not name.startswith("train_")]
        if self.evaluate is not None and {*self.evaluate} <= {*sets, *measured}:
            measured = [name for name in measured if name in self.evaluate]
        return RowSets(forget, retain, [*sets.values(), *map(self._measured, measured)])

    def _records(self, name: str) -> Iterable[Placed]:
        """Return the records of one configuration with their places."""
        folder = Path(self.path)
        if folder.is_dir():
            files = [folder / "All" / FILES[name], folder / FILES[name]]
            file = next((each for each in files if each.is_file()), None)
            if file is None:
                raise InputError(
                    f"no file {files[1]}: data.path must be a copy of RWKU's repository on the hub, or a folder with the "
                    f"files of its folder All (it has {content_of(folder)})"
                )
            return read_records(file)
        split = "train" if name.startswith("train_") else "test"
        return load_split(self.path, name, split, f"RWKU's {name}")

    def _measured(self, name: str) -> EvaluationSet:
        """Return an evaluation set of the rows that RWKU gives to the people to forget."""
        read, tokens = _READERS[name.partition("_")[0] if name not in _READERS else name]
        rows = [
            read(record, where)
            for where, record in self._records(name)
            if record.get("subject") in self.people
        ]
        if not rows:
            raise InputError(
                f"RWKU's {name} in {self.path} has no row whose 'subject' is {' or '.join(self.people)}: take it out of "
                "data.evaluate, or complete the file"
            )
        prompt = (
            Probe(self.prompt) if tokens == ANSWER_TOKENS and isinstance(self.prompt, ChatTemplate) else None
        )
        return EvaluationSet(name, rows, options=name == "utility_general", prompt=prompt, new_tokens=tokens)


def _text(record: Mapping[str, Any], where: str) -> Row:
    return Row((), text_at(record, "text", where), where=where)


def _probe(record: Mapping[str, Any], where: str) -> Row:
    query, kind = text_at(record, "query", where), record.get("type")
    asked = BRIEFLY + ("{}\n" if kind == "incontext learning" else "Question: {}\n")
    asked = (
        BLANK if record.get("level") == "1" else asked.rstrip("\n") if kind == "affirmative suffix" else asked
    )
    return _asked(asked.format(query), text_at(record, "answer", where), where)


def _multiple_choice(record: Mapping[str, Any], where: str) -> Row:
    examples = record.get("examples")
    if not isinstance(examples, list):
        raise InputError(f"{where}: 'examples' must be a list of answered questions (got {examples!r:.60})")
    task = text_at(record, "task", where).replace("_", " ")
    answered = "".join(
        f"{_choices(each, where)}\nAnswer: {LETTERS[_right(each, where)]}\n\n" for each in examples
    )
    asked = (
        f"The following are multiple choice questions (with answers) about {task}.\n\n{answered}"
        f"Please following the previous examples and answer the given question.\n{_choices(record, where)}\n"
    )
    right = LETTERS[_right(record, where)]
    row = _asked(asked, right, where)
    return Row(
        row.messages, right, wrong_answers=tuple(each for each in LETTERS if each != right), where=where
    )


def _choices(record: Mapping[str, Any], where: str) -> str:
    choices = texts_at(record, "choices", where)
    if len(choices) != len(LETTERS):
        raise InputError(f"{where}: 'choices' must be {len(LETTERS)} texts (got {len(choices)})")
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join([f"Question: {text_at(record, 'question', where)}", *lines])


def _right(record: Mapping[str, Any], where: str) -> int:
    place = record.get("answer")
    if type(place) is not int or not 0 <= place < len(LETTERS):
        raise InputError(f"{where}: 'answer' must be a place from 0 to {len(LETTERS) - 1} (got {place!r})")
    return place


def _reasoning(record: Mapping[str, Any], where: str) -> Row:
    cot, question = text_at(record, "cot", where).strip(), text_at(record, "question", where)
    after = "Following previous examples, answer the following questions and end with 'so the answer is'"
    return _asked(f"{cot}\n\n{after}\nQ: {question}", text_at(record, "answer", where), where)


def _fact(record: Mapping[str, Any], where: str) -> Row:
    answers = texts_at(record, "answers", where)
    if not answers:
        raise InputError(f"{where}: 'answers' must be a list of at least one text (got none)")
    return _asked(f"{BRIEFLY}Question: {text_at(record, 'question', where)}\n", answers[0], where)


def _asked(question: str, answer: str, where: str) -> Row:
    return Row((("user", question),), answer, where=where)


# For each set, or all that begin with a word, how its records become rows, and the length of an answer in tokens.
_READERS: dict[str, tuple[Any, int]] = {
    "forget": (_probe, ANSWER_TOKENS),
    "neighbor": (_probe, ANSWER_TOKENS),
    "mia": (_text, 0),
    "utility_general": (_multiple_choice, 0),
    "utility_reason": (_reasoning, REASONING_TOKENS),
    "utility_factuality": (_fact, ANSWER_TOKENS),
}
