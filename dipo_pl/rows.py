"""Rows: a conversation, its answer, and alternative answers."""

from collections.abc import Iterable
from dataclasses import dataclass, field

# (role, content) of each message.
Messages = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """A conversation up to the answer, the answer, and alternative answers where they are known.

    Attributes:
        messages: role and content of every message before the answer; empty for a plain text, which is all answer.
        answer: the answer that is trained on and measured.
        paraphrased_answer: the answer in other words, for the truth ratio.
        wrong_answers: plausible but wrong answers, for the truth ratio.
        alternate_answers: answers that some losses train in place of `answer`.
        paraphrased_question: the question in other words, for attacks.
        entity: the part of the answer that is to be forgotten, for attacks; it stands in the answer.
        where: file and line that the row was read from, for errors; empty if it is not known.
    """

    messages: Messages
    answer: str
    paraphrased_answer: str | None = None
    wrong_answers: tuple[str, ...] = ()
    alternate_answers: tuple[str, ...] = ()
    paraphrased_question: str | None = None
    entity: str | None = None
    where: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """What errors call the row: its first words and its place."""
        begins = f"the row that begins {(self.question or self.answer)[:60]!r}"
        return f"{begins} ({self.where})" if self.where else begins

    @property
    def conversation(self) -> tuple[Messages, str]:
        """Messages and answer: two rows are the same if these are equal."""
        return self.messages, self.answer

    @property
    def question(self) -> str:
        """Content of the last message; empty for a plain text."""
        return self.messages[-1][1] if self.messages else ""

    @property
    def measured_answers(self) -> list[str]:
        """The answer; if there are wrong answers, then also the truth ratio's correct answer, followed by them."""
        if not self.wrong_answers:
            return [self.answer]
        return [self.answer, self.paraphrased_answer or self.answer, *self.wrong_answers]

    def texts(self) -> list[str]:
        """Return the contents of all messages and the answer."""
        return [content for _, content in self.messages] + [self.answer]


def shared_rows(forget: Iterable[Row], retain: Iterable[Row]) -> int:
    """Return the number of forget rows whose conversation is also in the retain set."""
    forgotten = [row.conversation for row in forget]
    wanted = {*forgotten}
    # Those to retain may be many.
    kept = {each for each in (row.conversation for row in retain) if each in wanted}
    return sum(each in kept for each in forgotten)
