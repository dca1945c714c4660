"""Rows as users write them, read into one form, with errors that name the file and the line."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipo_pl.errors import InputError
from dipo_pl.storage.text import read_text

if TYPE_CHECKING:
    from dipo_pl.prompts import PromptFormat

Message = dict[str, str]


@dataclass(frozen=True)
class Row:
    """A conversation up to the answer, the answer, and others where they are known.

    The paraphrase and the wrong answers are for the truth ratio, the alternate ones for losses that put
    something else in the answer's place. A text without a question has no messages, and all of it is the
    answer.
    """

    messages: tuple[tuple[str, str], ...]
    answer: str
    paraphrased_answer: str | None = None
    wrong_answers: tuple[str, ...] = ()
    alternate_answers: tuple[str, ...] = ()

    @property
    def conversation(self) -> tuple[tuple[tuple[str, str], ...], str]:
        """What two rows share that are the same to the letter."""
        return self.messages, self.answer

    @property
    def question(self) -> str:
        return self.messages[-1][1] if self.messages else ""

    @property
    def measured_answers(self) -> list[str]:
        """The original answer; where wrong ones are known, also the correct one of the truth ratio, then they."""
        if not self.wrong_answers:
            return [self.answer]
        return [self.answer, self.paraphrased_answer or self.answer, *self.wrong_answers]

    def texts(self) -> list[str]:
        return [content for _, content in self.messages] + [self.answer]


@dataclass(frozen=True)
class EvaluationSet:
    """A named set of rows to be measured.

    Attributes:
        options: take an answer's probability among the row's answers.
        prompt: the set's own format; None is the data module's.
        new_tokens: at which a generated answer is cut; None is forget_quality.max_new_tokens, 0 generates none.
        cut_answers: the answers as far as `new_tokens` of the tokenizer's tokens reach, those that it puts before a
            text counted; the data module gives them where there is a `new_tokens` above 0.
    """

    name: str
    rows: Sequence[Row]
    options: bool = False
    prompt: "PromptFormat | None" = None
    new_tokens: int | None = None
    cut_answers: Sequence[str] | None = None


@dataclass(frozen=True)
class RowSets:
    """What a data module reads: the rows to forget, those to retain, and the sets to measure."""

    forget: Sequence[Row]
    retain: Sequence[Row]
    evaluation: Sequence[EvaluationSet]


def row_from(record: Mapping[str, Any], where: str) -> Row:
    """Reads {question, answer}, {text} or {messages}; paraphrased, perturbed and alternate answers are optional.

    Raises:
        InputError: a column is missing, empty or of the wrong type; `where` says in which row.
    """

    def text(key: str) -> str:
        value = record.get(key)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: '{key}' must be a non-empty text, got {value!r}")
        return value

    others = (
        text("paraphrased_answer") if record.get("paraphrased_answer") is not None else None,
        texts_at(record, "perturbed_answer", where),
        texts_at(record, "alternate_answer", where),
    )
    if "messages" in record:
        messages = _messages(record["messages"], where)
        return Row(messages[:-1], messages[-1][1], *others)
    if "question" in record or "answer" in record:
        return Row((("user", text("question")),), text("answer"), *others)
    if "text" in record:
        return Row((), text("text"), *others)
    raise InputError(
        f"{where}: needs the columns 'question' and 'answer', or 'text', or 'messages'; "
        f"it has {', '.join(record) or 'none'}"
    )


def texts_at(record: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """The texts of an optional column that holds one or a list of them.

    Raises:
        InputError: it holds something else.
    """
    value = record.get(key) or []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(each, str) and each.strip() for each in value):
        raise InputError(f"{where}: '{key}' must be a list of non-empty texts, got {value!r}")
    return tuple(value)


def _messages(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    valid = isinstance(value, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    )
    if not valid or len(value) < 2 or value[-1]["role"] != "assistant" or not value[-1]["content"].strip():
        raise InputError(
            f"{where}: 'messages' must be a list of {{role, content}} that ends with a non-empty "
            "answer of the assistant"
        )
    return tuple((turn["role"], turn["content"]) for turn in value)


def read_json_lines(path: str | Path) -> list[Row]:
    """Reads a file of one JSON object a line.

    Raises:
        InputError: the file is missing, empty or not UTF-8, or a line is not a usable object.
    """
    return [row_from(record, where) for where, record in json_records(path)]


def json_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON object of each line, and where it stands; errors as `read_json_lines`."""
    for where, line in read_lines(path, "a JSON-lines file"):
        try:
            record = json.loads(line)
            json.dumps(record, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None
        except RecursionError:
            raise InputError(f"{where}: nested too deep") from None
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise InputError(f"{where}: holds {half!r}, half a surrogate pair, which is no text") from None
        except ValueError as error:
            raise InputError(f"{where}: not usable JSON ({error})") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: must be a JSON object, got {type(record).__name__}")
        yield where, record


def read_lines(path: str | Path, kind: str) -> list[tuple[str, str]]:
    """The lines of a file that are not blank, and where each stands.

    Raises:
        InputError: the file is missing, empty or not UTF-8; `kind` says what it should have been.
    """
    try:
        lines = read_text(path).split("\n")
    except FileNotFoundError:
        raise InputError(f"no file {path}: give the path of {kind}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from None
    found = [(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise InputError(f"{path} is empty: it needs at least one row")
    return found


def shared_rows(forget: Iterable[Row], retain: Iterable[Row]) -> int:
    """How many forget rows also stand, to the letter, in the retain set."""
    kept = {row.conversation for row in retain}
    return sum(row.conversation in kept for row in forget)
