r"""Render conversations as guard prompts, and read guard completions strictly.

Conversation in, :class:`~guardrail.verdict.GuardPrompt` out; completion in, codes out. Pure text, no tokenizer.

**Rendering.** The prompt's words belong to the model: they come from its chat template, a callable given here, never
from this repository. Message text never passes through the template. The template is rendered with placeholders as
contents, split at them, and the messages put in as segments of their own (``is_data``), which the model tokenises with
special tokens off. White space of the template that touches a message travels in the message's segment, so that the
tokens are those of the whole string (``" hello"``, ``".\n\n"``), the ones that the model was trained on.

- The templates of Llama Guard 2 and 3 take user and assistant turns in strict turn, the user first. System and tool
  messages are left out of the context and ``detail`` says so; messages of one role in a row become one turn, joined by
  an empty line; a conversation that the assistant opens gets a user turn ``(no message)`` before it.
- Where the template trims contents, so does the renderer, since the template never sees them.
- A custom taxonomy replaces what stands between ``<BEGIN UNSAFE CONTENT CATEGORIES>`` and its end marker.

**Hygiene.** Message text cannot forge markers or turns. The markers are found in the rendered template and in the
tokenizer's special tokens: ``<BEGIN CONVERSATION>``, ``[INST]``, ``<|eot_id|>`` and the like become
``(BEGIN CONVERSATION)``, ``(INST)``, ``(|eot_id|)``; a role header at the start of a line (``User:``) becomes a
quotation (``> User:``). The judge still reads the words. Letter case, white space, invisible characters and full-width
or mathematical variants do not hide a marker; look-alike letters of other scripts do, being other letters to the model.

**Completion grammar.** ``safe`` | ``unsafe\n`` code (``,`` code)*, with ASCII white space around it allowed, since
Llama Guard 3 opens its answer with ``\n\n``. A code named twice counts once. Anything else is an error, never safe.
Source: PurpleLlama, Llama-Guard2/MODEL_CARD.md and Llama-Guard3/8B/MODEL_CARD.md.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator

from guardrail.errors import CompletionError, ConfigurationError
from guardrail.verdict import Conversation, GuardPrompt, Message, PromptSegment, Role

__all__ = ["ApplyTemplate", "GuardPromptRenderer", "parse_completion"]

ApplyTemplate = Callable[[list[dict[str, str]]], str]
"""Renders ``[{"role": "user", "content": "..."}, ...]`` by a model's chat template, up to where the answer begins."""

_COMPLETION = re.compile(r"[ \t\r\n]*(?:safe|unsafe\n(?P<codes>S[0-9]{1,3}(?:,S[0-9]{1,3})*))[ \t\r\n]*")

_CATEGORIES_BEGIN = "<BEGIN UNSAFE CONTENT CATEGORIES>"
_CATEGORIES_END = "<END UNSAFE CONTENT CATEGORIES>"

# Stands for the user's silence before an assistant's opening; templates refuse a conversation that the assistant opens.
_NO_MESSAGE = "(no message)"

# Words of a template in capitals between angle or square brackets are markers: <END CONVERSATION>, [/INST], <<SYS>>.
_TEMPLATE_MARKER = re.compile(r"</?[A-Z][A-Z0-9 _/&-]*>|\[/?[A-Z][A-Z0-9 _/&-]*\]")

# Characters that show nothing: soft hyphen, joiners, direction marks, fillers, variation selectors, byte-order mark.
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\U000e0000-\U000e007f"
)
_GAP = rf"[\s{_INVISIBLE}]*"
_LINE_BREAKS = r"\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_GAP_IN_LINE = rf"[^\S{_LINE_BREAKS}]|[{_INVISIBLE}]"


def parse_completion(completion: str, *, codes: Collection[str], source: str) -> tuple[str, ...]:
    r"""Reads a guard model's completion.

    Args:
        completion: ``"safe"`` or ``"unsafe\nS1,S9"``, white space around it allowed.
        codes: The codes that the model's version can write.
        source: Who wrote it, for the error message.

    Returns:
        The codes that it names, each once, in its order; none for ``safe``.

    Raises:
        CompletionError: If it is anything else.
    """
    match = _COMPLETION.fullmatch(completion)
    if match is None:
        raise CompletionError(
            f"expected 'safe' or 'unsafe\\n<codes>', got {len(completion)} characters outside that from {source}"
        )
    named = tuple(dict.fromkeys((match["codes"] or "").split(","))) if match["codes"] else ()
    unknown = sum(code not in codes for code in named)
    if unknown:
        raise CompletionError(f"expected codes of the model's own table, got {unknown} others from {source}")
    return named


class GuardPromptRenderer:
    """Renders conversations by a guard model's own chat template.

    Args:
        apply_template: The model's chat template.
        special_tokens: The tokenizer's special tokens as text.
        taxonomy: Replaces the template's categories; the codes in it must be those of the model's version.

    Raises:
        ConfigurationError: If the template does not hold each message exactly once, or a taxonomy has no place in it.
    """

    def __init__(
        self, apply_template: ApplyTemplate, *, special_tokens: Iterable[str] = (), taxonomy: str | None = None
    ) -> None:
        self._apply_template = apply_template
        self._taxonomy = None if taxonomy is None else taxonomy.strip()
        opening, closing = [["one"]], [["one"], ["two"]]
        shapes = [self._render_shape(shape) for shape in (opening, closing)]
        markers = {marker for pieces in shapes for piece in pieces for marker in _TEMPLATE_MARKER.findall(piece)}
        markers |= {token for token in special_tokens if token}
        headers = {piece.rsplit("\n", 1)[-1].strip() for pieces in shapes for piece in pieces[:-1]}
        self._forgery = _Forgery(markers, {header for header in headers if re.search(r"\w\W*:$", header)})
        if self._taxonomy is not None and self._forgery.neutralise(self._taxonomy) != self._taxonomy:
            raise ConfigurationError("a custom taxonomy must not hold markers or role headers of the prompt template")
        self._trims = self._finds_trimming()
        digest = hashlib.sha256()
        for pieces in shapes:
            for piece in pieces:
                digest.update(f"{len(piece)}:{piece}".encode())
        self._template_hash = digest.hexdigest()[:16]

    @property
    def template_hash(self) -> str:
        """Hash of the template with its taxonomy: of what it renders for a prompt and for a response."""
        return self._template_hash

    def neutralise(self, text: str) -> str:
        """Returns message text as it stands in prompts: what could pass for a marker or a role header is changed."""
        return self._forgery.neutralise(text)

    def render(self, conversation: Conversation) -> GuardPrompt:
        """Renders a conversation; its last message is the one to judge.

        Raises:
            ConfigurationError: If the template fails on it.
        """
        kept = [message for message in conversation.messages if message.role in (Role.USER, Role.ASSISTANT)]
        turns: list[list[Message]] = []
        for message in kept:
            if turns and turns[-1][0].role is message.role:
                turns[-1].append(message)
            else:
                turns.append([message])
        opens_with_user = turns[0][0].role is Role.USER
        names = [[message.content for message in turn] for turn in turns]
        pieces = self._render_shape(names if opens_with_user else [[], *names])
        texts = [self._data(message.content) for message in kept]
        left_out = len(conversation.messages) - len(kept)
        detail = f"{left_out} system or tool messages left out of the context" if left_out else ""
        return GuardPrompt(tuple(_segments(pieces, texts)), self._template_hash, detail)

    def _data(self, text: str) -> str:
        return self.neutralise(text.strip() if self._trims else text)

    def _render_shape(self, turns: list[list[str]]) -> list[str]:
        """Renders turns by placeholders and returns the template's text around them: one piece more than messages.

        Args:
            turns: For each turn, from the user's first on, its messages; an empty turn is a silent user.
        """
        count = sum(len(turn) for turn in turns)
        # Digits of fixed width: no slot's name begins another's.
        slots = iter(names := [f"guardrail-slot-{index:06d}-text" for index in range(count)])
        messages = [
            {
                "role": (Role.ASSISTANT if index % 2 else Role.USER).value,
                "content": "\n\n".join(next(slots) for _ in turn) or _NO_MESSAGE,
            }
            for index, turn in enumerate(turns)
        ]
        try:
            rendered = self._apply_template(messages)
        except Exception as exc:
            raise ConfigurationError(
                f"the chat template failed on {len(messages)} alternating turns: {type(exc).__name__}"
            ) from exc
        if self._taxonomy is not None:
            rendered = _replace_taxonomy(rendered, self._taxonomy)
        pieces: list[str] = []
        rest = rendered
        for name in names:
            before, found, rest = rest.partition(name)
            if not found or name in rest:
                raise ConfigurationError(
                    f"expected the chat template to hold each message once and in order, got message {len(pieces) + 1} "
                    f"of {len(names)} {rendered.count(name)} times; is this a guard model's template?"
                )
            pieces.append(before)
        return [*pieces, rest]

    def _finds_trimming(self) -> bool:
        """Whether the template trims contents, found by rendering one with white space around it."""
        name = "guardrail-slot-trim"
        return f"\n {name}\n " not in self._apply_template([{"role": "user", "content": f"\n {name}\n "}])


def _replace_taxonomy(rendered: str, taxonomy: str) -> str:
    begin, end = rendered.find(_CATEGORIES_BEGIN), rendered.find(_CATEGORIES_END)
    if not 0 <= begin < end or rendered.count(_CATEGORIES_BEGIN) != 1 or rendered.count(_CATEGORIES_END) != 1:
        raise ConfigurationError(
            f"a custom taxonomy needs a chat template with one {_CATEGORIES_BEGIN} ... {_CATEGORIES_END}"
        )
    return f"{rendered[: begin + len(_CATEGORIES_BEGIN)]}\n{taxonomy}\n{rendered[end:]}"


def _segments(pieces: list[str], texts: list[str]) -> Iterator[PromptSegment]:
    """Joins the template's pieces and the messages; white space between them goes to the messages."""
    head = pieces[0].rstrip()
    lead = pieces[0][len(head) :]
    if head:
        yield PromptSegment(head, is_data=False)
    for index, (text, piece) in enumerate(zip(texts, pieces[1:], strict=True)):
        is_last = index == len(texts) - 1
        body = piece.lstrip()
        tail = piece[: len(piece) - len(body)]
        yield PromptSegment(lead + text + tail, is_data=True)
        kept = body if is_last else body.rstrip()
        lead = body[len(kept) :]
        if kept:
            yield PromptSegment(kept, is_data=False)


class _Forgery:
    """Finds in message text what could pass for a marker or a role header, and makes it plain text."""

    def __init__(self, markers: Iterable[str], headers: Iterable[str]) -> None:
        # A marker whose brackets cannot be changed is left to the tokenizer, which reads no special tokens in data.
        usable = sorted(
            m for m in markers if re.search(r"[<\[]", m) and re.search(r"[>\]]", m) and not set("()") & set(m)
        )
        # Llama 3 has 256 special tokens of one shape: one pattern for all of them, and for those of later models.
        shaped = [m for m in usable if not re.fullmatch(r"<\|[\w-]+\|>", m)]
        control = f"{_any('<')}{_GAP}{_any('|')}(?:[\\w\\-\\s{_INVISIBLE}]{{1,80}}){_any('|')}{_GAP}{_any('>')}"
        patterns = [_GAP.join(_any(char) for char in m if not char.isspace()) for m in shaped]
        self._marker = re.compile("|".join([control, *patterns]), re.IGNORECASE)
        self._open = re.compile(f"{_any('<')}|{_any('[')}")
        self._close = re.compile(f"{_any('>')}|{_any(']')}")
        gap = f"(?:{_GAP_IN_LINE})*"
        names = [gap.join(_any(char) for char in header if not char.isspace()) for header in sorted(headers)]
        self._header = (
            re.compile(f"(?:(?<=[{_LINE_BREAKS}])|\\A)(?={gap}(?:{'|'.join(names)}))", re.IGNORECASE) if names else None
        )

    def neutralise(self, text: str) -> str:
        # Headers first: the quotation's ">" could close a marker that lacked it.
        quoted = text if self._header is None else self._header.sub("> ", text)
        return self._marker.sub(self._plain, quoted)

    def _plain(self, match: re.Match[str]) -> str:
        return self._close.sub(")", self._open.sub("(", match[0]))


def _any(char: str) -> str:
    """Returns a pattern for a character and its compatibility variants, e.g. full-width ones."""
    plain = unicodedata.normalize("NFKC", char)
    variants = {char, plain, *_variants().get(plain.lower(), "")} if len(plain) == 1 else {char}
    return f"[{''.join(re.escape(variant) for variant in sorted(variants))}]"


@functools.cache
def _variants() -> dict[str, str]:
    """ASCII character in lower case -> the characters that NFKC turns into it or its capital.

    Searched where Unicode keeps them: letter-like symbols, enclosed letters, small and full-width forms, mathematics.
    """
    found: dict[str, str] = {}
    for block in (range(0x2100, 0x2150), range(0x2460, 0x2500), range(0xFE10, 0xFFF0), range(0x1D400, 0x1D800)):
        for point in block:
            plain = unicodedata.normalize("NFKC", chr(point))
            if len(plain) == 1 and plain.isascii():
                found[plain.lower()] = found.get(plain.lower(), "") + chr(point)
    return found
