"""A conversation as a tokenizer's chat template writes it; errors name template, row and turn."""

import inspect
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateError, TemplateSyntaxError
from jinja2.meta import find_undeclared_variables
from transformers import PreTrainedTokenizerBase

from dipo_pl.errors import InputError
from dipo_pl.rows import Messages, Row

DATE_FORMAT = "%d %b %Y"
GENERATION_MARKER = re.compile(r"\{%[-+]?\s*generation\b")
# Tags that only transformers' own Jinja knows.
GENERATION_TAGS = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")

# Answers whose place in a text is their only occurrence: no row holds such numbers. Digits, because templates trim,
# capitalize, parse or escape other texts; of two lengths, because a template may look at the length.
_STAND_INS = tuple(f"{secrets.randbits(bits):0{bits // 3}d}" for bits in (96, 192))


def named_template(
    tokenizer: PreTrainedTokenizerBase, name: str | None, tools: Any = None
) -> tuple[str, str]:
    """Return how errors call the chat template of a tokenizer, and its text.

    Args:
        tokenizer: the tokenizer.
        name: the template's name, of a tokenizer that has several; None is its default.
        tools: tools of the conversation, for which some tokenizers have a template of their own.

    Raises:
        InputError: the tokenizer has no template, or none of this name.
    """
    source = getattr(tokenizer, "name_or_path", "")
    owner = f"the tokenizer of {source}" if source else "the tokenizer"
    templates = tokenizer.chat_template
    if not templates:
        raise InputError(f"{owner} has no chat template: use the prompt format QuestionAnswer or Llama2Chat")
    title = f"the chat template {name!r}" if name else "the chat template"
    one = f"{title} of {source or 'the tokenizer'}"
    if isinstance(templates, str):
        if name is not None:
            raise InputError(
                f"{owner} has one chat template, without a name: leave out data.prompt.template (got {name!r})"
            )
        return one, templates
    if name not in templates and (name is not None or "default" not in templates):
        lacks = "none that is the default" if name is None else f"none of the name {name!r}"
        raise InputError(
            f"{owner} has the chat templates {', '.join(sorted(templates))} and {lacks}: choose one with "
            "data.prompt.template"
        )
    return one, tokenizer.get_chat_template(name, tools)


@lru_cache(maxsize=8)
def variables_of(template: str) -> frozenset[str] | None:
    """Return the names that a template reads from what it is given; None if it is no Jinja template."""
    jinja = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return frozenset(find_undeclared_variables(jinja.parse(GENERATION_TAGS.sub("", template))))
    except TemplateSyntaxError:
        return None


def check_variables(variables: Mapping[str, Any]) -> None:
    """Raise an InputError if a template variable is an argument of `apply_chat_template` or set in another way."""
    taken = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {
        "tools",
        "documents",
    }
    for name in variables:
        if name in taken | {"messages", "date_string", "strftime_now"}:
            raise InputError(
                f"data.prompt.variables cannot set {name}, which transformers or data.prompt sets: leave it out"
            )


def without_spaces(text: str) -> str:
    """Return a text without spaces and line breaks."""
    return "".join(text.split())


@dataclass(frozen=True)
class Answered:
    """A conversation with its answer, divided at the answer.

    Attributes:
        generation_prompt: the turns before the answer, and what the template writes for a model to answer after it.
        before: text up to the answer.
        answer: the answer as the template writes it.
        closing: text that ends the answer's turn.
        after: text that follows, such as a line break.
    """

    generation_prompt: str
    before: str
    answer: str
    closing: str
    after: str


@dataclass(frozen=True)
class Chat:
    """The turns of a row under a chat template.

    Attributes:
        tokenizer: the tokenizer, whose special tokens templates write.
        name: the template's name in errors.
        template: its text.
        variables: what the template is given besides the turns.
        row: the row, for errors.
        turns: role and content of every turn before the answer.
        prefilled: the answer is put after the generation prompt, whatever the template writes around an answer.
        in_parts: contents are lists of one text part, which some templates ask for.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    template: str
    variables: Mapping[str, Any]
    row: Row
    turns: Messages
    prefilled: bool = False
    in_parts: bool = False

    def answered(self, answer: str) -> Answered:
        """Return the conversation with an answer, its contents as texts or, if the template does not take these, in parts.

        Raises:
            InputError: the template refuses the row, or the place of the answer cannot be known.
        """
        try:
            return self.divided(answer)
        except InputError:
            in_parts = replace(self, in_parts=True)
            try:
                return in_parts.divided(answer)
            except InputError:
                pass
            raise

    def divided(self, answer: str) -> Answered:
        """Return the conversation with an answer, divided at it.

        The place of the answer is where the template writes stand-ins for it, with the same text around each. An answer
        that the template writes with other text around it, such as one with a thought of its own, is all that stands
        between the generation prompt and the end of the turn. The turn ends with all that the template writes, or with
        its {% generation %} block, spaces at the end aside.

        Raises:
            InputError: the template refuses the row, or the place of the answer cannot be known.
        """
        whole = self._write(self._with(answer))
        before, rest = self._around_answer()
        prompt = self._write(self.turns, add_generation_prompt=True)
        if not self._fits(whole, before, rest):
            before = prompt
            written = whole[len(before) : len(whole) - len(rest)]
            if not self._fits(whole, before, rest) or without_spaces(written) != without_spaces(answer):
                raise self._refusal(
                    "writes other text around the answer than around other answers to",
                    f"remove from the answer {answer[:60]!r} what the template reacts to, or use QuestionAnswer",
                )
        end = len(whole) - len(rest)
        if not whole[len(before) : end].strip():
            raise self._refusal("writes nothing of the answer to", f"change the answer {answer[:60]!r}")
        self._refuse_unwritten(prompt if self.prefilled else whole)
        turn_end = max(end, min(len(whole.rstrip()), self._marked_end(answer, len(before), len(whole))))
        return Answered(prompt, before, whole[len(before) : end], whole[end:turn_end], whole[turn_end:])

    def _around_answer(self) -> tuple[str, str]:
        """Return the text before and after an answer."""
        first, second = _STAND_INS
        text, other = (self._write(self._with(each)) for each in _STAND_INS)
        if (count := text.count(first)) != 1:
            times = (
                "does not write the answer as it is to"
                if not count
                else f"writes the answer {count} times to"
            )
            raise self._refusal(times, "use the prompt format QuestionAnswer or Llama2Chat")
        before, rest = text.split(first)
        if other != before + second + rest:
            raise self._refusal(
                "writes text that changes with the answer around the answer to",
                "use the prompt format QuestionAnswer",
            )
        return before, rest

    def _refuse_unwritten(self, text: str) -> None:
        """Raise an InputError if a text leaves out the last turn before the answer, or a system message."""
        for place, (role, content) in enumerate(self.turns):
            needed = role == "system" or place == len(self.turns) - 1
            if not needed or not content.strip() or content.strip() in text:
                continue
            # A template may write the content in another form.
            first, answer = _STAND_INS
            turns = (*self.turns[:place], (role, first), *self.turns[place + 1 :])
            if self.prefilled:
                written = self._write(turns, add_generation_prompt=True)
            else:
                written = self._write((*turns, ("assistant", answer)))
            if first not in written:
                advice = f"remove turn {place + 1} ({role}, {content[:60]!r})"
                if (role, content) not in self.row.messages:
                    advice = "leave out data.prompt.system"
                raise self._refusal("leaves out a turn of", advice)

    def _marked_end(self, answer: str, start: int, otherwise: int) -> int:
        """Return the place where the answer's {% generation %} block ends, if it is in one."""
        if not GENERATION_MARKER.search(self.template):
            return otherwise
        coded = self._apply(
            self._with(answer),
            return_assistant_tokens_mask=True,
            return_dict=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        marked = zip(coded["assistant_masks"], coded["offset_mapping"], strict=True)
        last = max((end for is_marked, (_, end) in marked if is_marked), default=0)
        return last if last > start else otherwise

    def _with(self, answer: str) -> Messages:
        return (*self.turns, ("assistant", answer))

    @staticmethod
    def _fits(whole: str, before: str, rest: str) -> bool:
        return len(before) + len(rest) <= len(whole) and whole.startswith(before) and whole.endswith(rest)

    def _refusal(self, problem: str, advice: str) -> InputError:
        return InputError(f"{self.name} {problem} {self.row.label}: {advice}")

    def _write(self, turns: Messages, **options: Any) -> str:
        """Return the text of turns; raise an InputError that names the first turn that cannot be written."""
        try:
            text: str = self._apply(turns, tokenize=False, **options)
        except TemplateSyntaxError as error:
            raise InputError(f"{self.name} is not a Jinja template: {_in_words(error)}") from error
        except Exception as error:
            place = self._place_of(error, turns)
            role, content = turns[place - 1]
            raise InputError(
                f"{self.name} refuses {self.row.label}, turn {place} of {len(turns)} ({role}, {content[:60]!r}): "
                f"{_in_words(error)}"
            ) from error
        if self.in_parts and "{'type': 'text', 'text': " in text:
            raise self._refusal("takes no parts of messages of", "use the prompt format QuestionAnswer")
        return text

    def _place_of(self, error: Exception, turns: Messages) -> int:
        """Return the number of the first turn with which turns raise this error."""
        for place in range(1, len(turns)):
            try:
                self._apply(turns[:place], tokenize=False)
            except Exception as other:
                if str(other) == str(error):
                    return place
        return len(turns)

    def _apply(self, turns: Messages, **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(
            [
                {"role": role, "content": [{"type": "text", "text": content}] if self.in_parts else content}
                for role, content in turns
            ],
            chat_template=self.template,
            **self.variables,
            **options,
        )


@lru_cache(maxsize=8)
def with_fixed_date(template: str, date_string: str) -> str:
    """Return a template in which `strftime_now(format)` gives a fixed date at 00:00 instead of today's.

    transformers passes no function to a template, so that a macro before its first line has to stand for the clock.
    """
    if "strftime_now" not in template:
        return template
    try:
        date = datetime.strptime(date_string, DATE_FORMAT)
    except ValueError:
        body = f"{{{{ raise_exception({_unreadable(date_string)!r}) }}}}"
    else:
        body = "{{ format" + "".join(f"|replace({a!r}, {b!r})" for a, b in _directives(date).items()) + " }}"
    # The line break after a block is not written, and the template begins at the start of a line as before.
    return f"{{% macro strftime_now(format) %}}{body}{{% endmacro %}}\n{template}"


def _directives(date: datetime) -> dict[str, str]:
    """Return what each directive of strftime stands for on a date, in an order in which they can be replaced."""
    names = "aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"
    found = {f"%{flag}{name}": date.strftime(f"%{flag}{name}") for name in names for flag in ("", "-", "_")}
    return {"%%": "\0"} | {key: value for key, value in found.items() if value != key} | {"\0": "%"}


def _unreadable(date_string: str) -> str:
    return f"data.prompt.date_string must be a date such as 10 Apr 2025 for a template that asks for it (got {date_string})"


def _in_words(error: Exception) -> str:
    """Return the message of an error in one line, with its kind if the template has not raised it on purpose."""
    words = " ".join(str(error).split())
    return words if type(error) is TemplateError and words else f"{type(error).__name__}: {words}"
