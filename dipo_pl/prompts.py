"""Prompt formats: the text before an answer and the text that ends it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from dipo_pl.chat_rendering import Chat, check_variables, named_template, variables_of, with_fixed_date
from dipo_pl.errors import InputError
from dipo_pl.rows import Row

DATE = "10 Apr 2025"


@dataclass(frozen=True)
class Rendered:
    """A row's prompt as text.

    Attributes:
        prompt: the text before the answer; no loss is taken on it.
        answer: the answer as the format writes it; None is the row's as it is.
        closing: text that ends the assistant's turn and is trained with the answer; where it is empty, EOS follows.
        after: text that follows; it is left out, but may share its first token with what is before it.
        special_tokens: let the tokenizer add its own special tokens (BOS); false where a template has written them.
        apart: tokenize the prompt separately from the answer, so that a space at its end stays a token of its own.
    """

    prompt: str
    answer: str | None = None
    closing: str = ""
    after: str = ""
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
    """Format of a text, a space, and the text that continues or answers it.

    Source: MUSE, arXiv:2407.06460, "VerbMem"; LUME, arXiv:2502.15097, whose script gives a model the text alone.
    """

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        """Return the text and a space; an empty prompt for a plain text."""
        question = self.question_of(row)
        return Rendered("" if question is None else f"{question} ")


class Llama2Chat(QuestionAnswer):
    """Format `[INST] {question} [/INST]{answer}`, which TOFU uses for Llama-2-chat."""

    def __init__(self) -> None:
        super().__init__(question_start="[INST] ", answer_start=" [/INST]")


class ChatTemplate(PromptFormat):
    r"""Format of the tokenizer's own chat template: the token ids are those of transformers' `apply_chat_template`.

    What the template writes before the answer, such as an empty thought, is part of the prompt. The sequence ends where
    the template ends the answer's turn: with all that it writes, or with its `{% generation %}` block, without spaces and
    line breaks at the end.

    Args:
        system: a system message to begin with, or none; open-unlearning uses "You are a helpful assistant." with Llama-3.
        date_string: the date that templates write, whether they take it from `date_string`, as Llama-3's, or from
            `strftime_now`, as Granite's; fixed, so that a row's tokens do not change from day to day.
        variables: other variables of the template, such as `enable_thinking: false`.
        template: name of the template, of a tokenizer that has several; null takes its default.
        prefill: put the answer after the generation prompt and this text, instead of where the template writes an answer;
            for a template whose generation prompt opens a thought that its conversations do not have, as DeepSeek-R1's:
            `"\n</think>\n\n"` closes it.

    Raises:
        InputError: `variables` has a name that is not a template's own.
    """

    def __init__(
        self,
        system: str | None = None,
        date_string: str = DATE,
        variables: dict[str, Any] | None = None,
        template: str | None = None,
        prefill: str | None = None,
    ) -> None:
        self.system = system
        self.date_string = date_string
        self.variables = variables or {}
        self.template = template
        self.prefill = prefill
        check_variables(self.variables)

    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        """Return the conversation divided at the answer; nothing before and after a plain text.

        Raises:
            InputError: there is no template, it refuses the row, or the place of the answer cannot be known.
        """
        if not row.messages:
            return Rendered("")
        chat = self._chat(row, tokenizer)
        found = chat.answered(row.answer)
        prompt, before = found.generation_prompt, found.before
        if self.prefill is not None:
            before = prompt + self.prefill
        elif not before.startswith(prompt):
            common = next(
                (at for at, (a, b) in enumerate(zip(prompt, before, strict=False)) if a != b), len(before)
            )
            rank_zero_warn(
                f"{chat.name} has a model answer after {prompt[common:]!r}, but writes conversations without it: rows are "
                "trained and measured as conversations; data.prompt.prefill puts answers after the generation prompt"
            )
        return Rendered(before, found.answer, found.closing, found.after, special_tokens=False)

    def _chat(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Chat:
        name, template = named_template(tokenizer, self.template, self.variables.get("tools"))
        if (known := variables_of(template)) is not None:
            self._refuse_unread(name, known)
        turns = row.messages
        if self.system is not None and turns[0][0] != "system":
            turns = (("system", self.system), *turns)
        template, variables = with_fixed_date(template, self.date_string), {"date_string": self.date_string}
        return Chat(
            tokenizer, name, template, variables | self.variables, row, turns, self.prefill is not None
        )

    def _refuse_unread(self, name: str, known: Set[str]) -> None:
        """Raise an InputError if a template does not read a variable that is set."""
        for variable in self.variables:
            if variable not in known:
                raise InputError(
                    f"{name} has no variable {variable!r} (it reads {', '.join(sorted(known))}): take it out of "
                    "data.prompt.variables"
                )
        if self.date_string != DATE and known.isdisjoint(("date_string", "strftime_now")):
            raise InputError(
                f"{name} writes no date: leave out data.prompt.date_string (got {self.date_string})"
            )
