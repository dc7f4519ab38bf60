"""What a tokenizer's chat template writes around an answer, and which tokens end one.

Training, scoring, sampling and saved models all ask here, so that an answer ends everywhere as it was taught to end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench import WorkbenchError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]

QUESTION, ANSWER = "wbquestion", "wbanswer"  # words that no template writes
MARK = re.compile(r"<.+>")  # a word that is no word, whether or not the tokenizer says so
OPENED = re.compile(r"<(\w+)>\s*\Z")  # what a request for an answer opens and the answer has to close: <think>


@dataclass(frozen=True, kw_only=True)
class Turn:
    """An answer's surroundings; all "" without a template."""

    start: str = ""  # what stands before a user's first words
    request: str = ""  # between the user's words and the answer
    lead: str = ""  # what follows the request and belongs to the answer: a blank, as in "ASSISTANT: yes", or marks
    shown: str = ""  # the request as a decoder writes it, with the blanks that only the tokenizer put there
    heard: str = ""  # the lead as a decoder writes it, without marks
    closing: str = ""  # after the answer, up to the token that ends it
    tail: str = ""  # after the answer, all of it
    end: str = ""  # that token, "" where the template writes none

    def words(self, text: str) -> str:
        """The words of an answer that was written after a request, its end left out."""
        return text.removeprefix(self.lead).removesuffix(self.closing.removesuffix(self.end))

    def said(self, words: str, *, finished: bool) -> str:
        """The other way round."""
        return self.lead + words + (self.closing.removesuffix(self.end) if finished else "")

    def written(self, answer: str, *, finished: bool) -> str:
        """An answer in its place after the request, whose lead and end it may have or lack."""
        if not finished:
            return self.lead + answer.removeprefix(self.lead)
        return self.said(self.words(answer.removesuffix(self.end)), finished=True) + self.end


def turn_of(tokenizer: PreTrainedTokenizerBase) -> Turn:
    """How the chat template surrounds an answer, read off a conversation of two messages.

    The first token of its own that the template writes behind the answer ends it: <end_of_turn>, say, where EOS is
    another one. A template that refuses these messages is taken for none.
    """
    if not getattr(tokenizer, "chat_template", None):  # what stands in for a tokenizer may have no such thing
        return Turn()
    asked = [{"role": "user", "content": QUESTION}]
    for talk in (asked, [{"role": "system", "content": QUESTION}, *asked]):  # some want to be told who they are
        try:
            request = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
            told = tokenizer.apply_chat_template([*talk, {"role": "assistant", "content": ANSWER}], tokenize=False)
            break
        except Exception:  # a template may raise anything; what it refuses is said where a row meets it
            told = ""
    if ANSWER not in told:
        return Turn()
    tail = told.rpartition(ANSWER)[2]
    own = {tokenizer.eos_token, *tokenizer.added_tokens_encoder}
    marks = tokenizer.convert_ids_to_tokens(tokenizer(tail, add_special_tokens=False)["input_ids"])
    marks = (mark for mark in marks if mark in own or MARK.fullmatch(mark))
    end = next((mark for mark in marks if mark.strip() and mark in tail), "")
    start, _, after = request.rpartition(QUESTION)
    closing = tail[: tail.index(end) + len(end)] if end else tail
    lead = told[len(request) :].partition(ANSWER)[0] if told.startswith(request) else ""
    shown, heard = _decoded(tokenizer, request, lead)
    if lead.strip() and heard.endswith(lead):  # words that a policy may say or not: <think></think>
        lead, heard = "", heard.removesuffix(lead)
    return Turn(start=start, request=after, lead=lead, shown=shown, heard=heard, closing=closing, tail=tail, end=end)


def _decoded(tokenizer: PreTrainedTokenizerBase, request: str, lead: str) -> tuple[str, str]:
    """The end of a request and the lead of an answer as a decoder writes them."""
    read = tokenizer([request, request + lead + ANSWER], add_special_tokens=False)["input_ids"]
    asked, said = tokenizer.batch_decode(read, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    shown = tokenizer.decode(read[0], clean_up_tokenization_spaces=False)
    known = said.startswith(asked) and said.endswith(ANSWER)  # a small vocabulary may not have these words
    shown = shown if QUESTION in shown else request
    return shown.rpartition(QUESTION)[2], said[len(asked) : -len(ANSWER)] if known else lead


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a completion: EOS, and what the chat template ends an answer with where that is another one.

    WorkbenchError where the tokenizer has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise WorkbenchError(
            f"The tokenizer {tokenizer.name_or_path!r} has no EOS token, so no completion could end: "
            "set tokenizer.eos_token."
        )
    end = turn_of(tokenizer).end
    ids = [tokenizer.eos_token_id, *([tokenizer.convert_tokens_to_ids(end)] if end else [])]
    return list(dict.fromkeys(ids))


def rendered(messages: Messages, tokenizer: PreTrainedTokenizerBase, *, row: int, ask: bool) -> str:
    """A conversation through the chat template, ending with its request for an answer if `ask`."""
    if not tokenizer.chat_template:
        raise WorkbenchError(
            f"Row {row} is a conversation but the tokenizer {tokenizer.name_or_path!r} has no chat template: "
            "use the tokenizer of a chat model, set tokenizer.chat_template, or give prompts as plain text."
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except Exception as error:  # a template may raise anything, often about the order of roles
        roles = ", ".join(message["role"] for message in messages)
        raise WorkbenchError(
            f"The chat template of {tokenizer.name_or_path!r} refused row {row}, whose roles are {roles} "
            f"({error}): give what it expects, say other roles, or set another tokenizer.chat_template."
        ) from error


def rendered_answer(
    prompt: Messages, answer: str | Messages, tokenizer: PreTrainedTokenizerBase, *, asked: str, turn: Turn, row: int
) -> str:
    """What the chat template writes after `asked`, the rendered prompt, without what follows the answer.

    `answer` are messages, or the words of one. WorkbenchError where the template writes the prompt differently once it
    is answered, unless that is because it shows no earlier reasoning: then the answer is what follows the request.
    """
    said = isinstance(answer, str)
    messages = [{"role": "assistant", "content": turn.words(answer)}] if said else answer
    told = rendered([*prompt, *messages], tokenizer, row=row, ask=False)
    if told.startswith(asked):
        text = told[len(asked) :]
        cut = text.endswith(turn.tail) or not turn.end
        return text.removesuffix(turn.tail) if cut else text.rpartition(turn.end)[0] or text
    opened, content = OPENED.search(asked), messages[-1]["content"]
    if opened and len(messages) == 1 and (said or f"</{opened[1]}>" in content):
        return content.lstrip().removeprefix(opened[0])
    cure = f"close <{opened[1]}> in the answer, " if opened else ""
    raise WorkbenchError(
        f"The chat template of {tokenizer.name_or_path!r} writes the prompt of row {row} differently once an "
        f"answer follows it, so the two cannot be told apart: {cure}use another template, or give plain text."
    )
