"""Prompt formats: the text before an answer and the text that ends it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dipo_pl.errors import InputError
from dipo_pl.rows import Row


@dataclass(frozen=True)
class Rendered:
    """A row's prompt as text.

    Attributes:
        prompt: the text before the answer; no loss is taken on it.
        closing: text that ends the assistant's turn and is trained with the answer; where it is empty, EOS follows.
        special_tokens: let the tokenizer add its own special tokens (BOS); false where a template has written them.
        apart: tokenize the prompt separately from the answer, so that a space at its end stays a token of its own.
    """

    prompt: str
    closing: str = ""
    special_tokens: bool = True
    apart: bool = False


class PromptFormat(ABC):
    """Base class of prompt formats, which render a row's messages as text."""

    @abstractmethod
    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        """Return the row's prompt for the tokenizer; raise InputError if the format cannot express the row."""

    def question_of(self, row: Row) -> str | None:
        """Return the row's only message, or None for a plain text.

        Raises:
            InputError: the row has several messages before its answer.
        """
        if len(row.messages) > 1:
            raise InputError(
                f"the prompt format {type(self).__name__} supports one question (got a row of {len(row.messages)} messages "
                f"before its answer, {row.messages[0][1][:60]!r}...): use ChatTemplate"
            )
        return row.messages[0][1] if row.messages else None


class QuestionAnswer(PromptFormat):
    r"""Format `Question: {question}\nAnswer: {answer}`, for models without a chat template.

    Source: open-unlearning. TOFU's own code for Phi-1.5 also takes loss on `Answer: `; here it is part of the prompt.

    Args:
        question_start: text before the question.
        answer_start: text between the question and the answer.
    """

    def __init__(self, question_start: str = "Question: ", answer_start: str = "\nAnswer: ") -> None:
        self.question_start = question_start
        self.answer_start = answer_start

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        """Return the question between `question_start` and `answer_start`; an empty prompt for a plain text."""
        question = self.question_of(row)
        return Rendered("" if question is None else f"{self.question_start}{question}{self.answer_start}")


class FewShot(QuestionAnswer):
    r"""Format that puts answered questions, `Question: {question}\nAnswer: {answer}\n\n` each, before the row's question.

    Source: MUSE, arXiv:2407.06460.

    Args:
        examples: the questions and their answers.
    """

    def __init__(self, examples: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.examples = list(examples)

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        """Return the examples and the question, tokenized apart from the answer."""
        before = (
            f"{self.question_start}{asked}{self.answer_start}{answer}\n\n" for asked, answer in self.examples
        )
        return Rendered("".join(before) + super().render(row, tokenizer).prompt, apart=True)


class Continuation(PromptFormat):
    """Format of a text, a space, and the text that continues it."""

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        """Return the text and a space."""
        return Rendered(f"{self.question_of(row)} ")


class Llama2Chat(QuestionAnswer):
    """Format `[INST] {question} [/INST]{answer}`, which TOFU uses for Llama-2-chat."""

    def __init__(self) -> None:
        super().__init__(question_start="[INST] ", answer_start=" [/INST]")


class ChatTemplate(PromptFormat):
    """Format of the tokenizer's own chat template.

    Args:
        system: a system message to begin with, or none; open-unlearning uses "You are a helpful assistant." with Llama-3.
        date_string: the date that templates such as Llama-3's write into the system message; fixed, so that a row's
            text does not change from day to day.
    """

    def __init__(self, system: str | None = None, date_string: str = "10 Apr 2025") -> None:
        self.system = system
        self.date_string = date_string

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        """Return the template's text up to the answer, and the end of the assistant's turn; nothing for a plain text.

        Raises:
            InputError: there is no template, it refuses the row, or its text cannot be split at the answer.
        """
        if not tokenizer.chat_template:
            raise InputError(
                "the tokenizer has no chat template: use the prompt format QuestionAnswer or Llama2Chat"
            )
        if not row.messages:
            return Rendered("")
        turns = [{"role": role, "content": content} for role, content in row.messages]
        if self.system is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        # Some templates strip contents; spaces around the answer are part of neither prompt nor closing.
        answer = row.answer.strip()
        prompt = self._apply(tokenizer, turns, add_generation_prompt=True)
        whole = self._apply(tokenizer, [*turns, {"role": "assistant", "content": answer}])
        answer_at = whole.find(answer, len(prompt))
        if not whole.startswith(prompt) or answer_at < 0:
            raise InputError(
                "the tokenizer's chat template does not write the answer after its generation prompt: use the prompt "
                "format QuestionAnswer or Llama2Chat"
            )
        # The line break that some templates write after the end of a turn belongs to the next turn.
        closing = whole[answer_at + len(answer) :].rstrip()
        return Rendered(whole[:answer_at], closing, special_tokens=False)

    def _apply(self, tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], **options: Any) -> str:
        try:
            text = tokenizer.apply_chat_template(
                turns, tokenize=False, date_string=self.date_string, **options
            )
        except TemplateError as error:
            raise InputError(
                f"the tokenizer's chat template refuses the row that begins {turns[-1]['content'][:60]!r} with "
                f"the roles {', '.join(turn['role'] for turn in turns)}: {error}"
            ) from error
        assert isinstance(text, str)
        return text
