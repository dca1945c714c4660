"""Prompt formats: how a conversation becomes the text before the answer, and what closes the answer."""

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
    """A prompt as text.

    Attributes:
        prompt: all that stands before the answer; no loss is taken on it.
        closing: text that ends the answer's turn; it is trained with the answer. EOS is appended by
            the encoding where this leaves none.
        special_tokens: whether the tokenizer adds its own (BOS); a template has written them already.
        apart: the prompt is tokenised on its own, whatever follows: a space at its end then stays a token.
    """

    prompt: str
    closing: str = ""
    special_tokens: bool = True
    apart: bool = False


class PromptFormat(ABC):
    """Renders a row's conversation for a tokenizer."""

    @abstractmethod
    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered: ...


def _single_question(row: Row, name: str) -> str | None:
    """The question, or None for a plain text.

    Raises:
        InputError: the conversation has more than one turn before the answer.
    """
    if len(row.messages) > 1:
        raise InputError(
            f"the prompt format {name} holds one question, and a row has {len(row.messages)} messages "
            f"before its answer ({row.messages[0][1][:60]!r}...): use ChatTemplate"
        )
    return row.messages[0][1] if row.messages else None


class QuestionAnswer(PromptFormat):
    r"""`Question: {question}\nAnswer: ` then the answer; for models without a chat template.

    open-unlearning's form. TOFU's own code for Phi-1.5 takes loss on `Answer: ` too; here it is prompt.

    Args:
        question_start: text before the question.
        answer_start: text between the question and the answer.
    """

    def __init__(self, question_start: str = "Question: ", answer_start: str = "\nAnswer: ") -> None:
        self.question_start = question_start
        self.answer_start = answer_start

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        question = _single_question(row, "QuestionAnswer")
        if question is None:
            return Rendered("")
        return Rendered(f"{self.question_start}{question}{self.answer_start}")


class FewShot(QuestionAnswer):
    r"""Answered questions before the row's own, each `Question: {question}\nAnswer: {answer}\n\n`: MUSE's form.

    Args:
        examples: questions and their answers.
    """

    def __init__(self, examples: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.examples = list(examples)

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        before = "".join(
            f"{self.question_start}{question}{self.answer_start}{answer}\n\n"
            for question, answer in self.examples
        )
        return Rendered(before + super().render(row, tokenizer).prompt, apart=True)


class Continuation(PromptFormat):
    """A text and a space, then what follows it."""

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        return Rendered(f"{_single_question(row, 'Continuation')} ")


class Llama2Chat(QuestionAnswer):
    """`[INST] {question} [/INST]` then the answer with no space between: TOFU's form for Llama-2-chat."""

    def __init__(self) -> None:
        super().__init__(question_start="[INST] ", answer_start=" [/INST]")


class ChatTemplate(PromptFormat):
    """The tokenizer's own chat template.

    Args:
        system: a system message put first, or none. open-unlearning uses "You are a helpful assistant."
            with Llama-3.
        date_string: the date that templates such as Llama-3's write into the system turn; fixed, so that
            the same row is the same text tomorrow.
    """

    def __init__(self, system: str | None = None, date_string: str = "10 Apr 2025") -> None:
        self.system = system
        self.date_string = date_string

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        """Raises InputError where there is no template, or it refuses the row or cannot be split at the answer."""
        if not tokenizer.chat_template:
            raise InputError(
                "the tokenizer has no chat template: use the prompt format QuestionAnswer or Llama2Chat"
            )
        if not row.messages:
            return Rendered("")
        turns = [{"role": role, "content": content} for role, content in row.messages]
        if self.system is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        # Some templates strip what they are given; space around the answer is no part of prompt or closing.
        answer = row.answer.strip()
        prompt = self._apply(tokenizer, turns, add_generation_prompt=True)
        whole = self._apply(tokenizer, [*turns, {"role": "assistant", "content": answer}])
        answer_at = whole.find(answer, len(prompt))
        if not whole.startswith(prompt) or answer_at < 0:
            raise InputError(
                "the tokenizer's chat template does not write the answer after its generation prompt: "
                "use the prompt format QuestionAnswer or Llama2Chat"
            )
        # What some templates write after the end of the turn (a line break) belongs to the next turn.
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
