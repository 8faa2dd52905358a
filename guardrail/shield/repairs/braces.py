"""Repairs of fragments in languages with braces: openers for what is closed only, closers for what is opened only.

Which opener a ``}`` without one gets is told by what stands around it: ``} catch`` ends a ``try {``, a ``}`` after a
``case`` ends a ``switch``, one before a method ends a method, the next one then a class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from guardrail.shield.repairs.tokens import CLOSER_OF, OPENER_OF, STRING, Token, Tokens, tokenize

__all__ = ["GRAMMARS", "repairs"]


@dataclass(frozen=True)
class Grammar:
    """What a language's fragments can be set in; a text that ends with a bracket opens it.

    Attributes:
        function: A function's body.
        method: A body in a class.
        head: A function's parameters.
        group: A class's body.
        switch: The cases of a ``switch``.
        condition: What may stand before ``else``.
        attempt: What may stand before ``catch``.
        loop: What may stand before ``while (...);``.
        closure: A function's body in the arguments of a call.
        call: Arguments.
        index: Items.
        end: What ends a statement.
        attempt_end: What a ``try`` needs behind its ``}``.
        loop_end: What a ``do`` needs behind its ``}``.
        arm: What a case of ``switch`` has behind its pattern, where it has no ``case`` before it.
        settings: More to set a whole fragment in: before, and after it.
        member: What an attribute at the end may stand for.
        objects: What opens a list of items or fields: as a statement, as a field of another one, and as an item.
        record: What opens fields with a name behind their ``}``.
        in_function: Whether statements stand in functions alone.
    """

    function: str
    group: str
    head: str
    method: str = ""
    switch: str = "switch (1) { case 0:"
    condition: str = "if (1) {"
    attempt: str = "try {"
    loop: str = "do {"
    closure: str = "{"
    call: str = "("
    index: str = "["
    end: str = ";"
    attempt_end: str = " finally {}"
    loop_end: str = " while (0);"
    arm: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    member: str = " int x;"
    in_function: bool = False
    objects: tuple[str, str, str] = ("{", "{", "{")
    record: str = "{"


_SCRIPT = Grammar(
    "function f() {",
    "class A {",
    "function f(",
    method="m() {",
    closure="async function() {",
    member="",
    objects=("x = {", "x: {", "{"),
    settings=(("({ ", "\n})"), ("class A { m() ", "\n}"), ("f( ", "\n)")),
)
_C = Grammar(
    "void f() {",
    "class A {",
    "void f(",
    attempt_end=" catch (...) {}",
    objects=("int x[] = {", "{", "{"),
    record="typedef struct {",
    settings=(("int x[] = { ", "\n};"), ("switch (1) { ", "\n}")),
)

GRAMMARS: dict[str, Grammar] = {
    "javascript": _SCRIPT,
    "typescript": _SCRIPT,
    "tsx": _SCRIPT,
    "java": Grammar(
        "void f() {",
        "class A {",
        "void f(",
        condition="if (true) {",
        closure="() -> {",
        objects=("int[] x = {", "{", "new int[] {"),
        loop_end=" while (true);",
        settings=(("enum A { ", "\n}"), ("@A( ", ") class A {}")),
    ),
    "c": _C,
    "cpp": _C,
    "csharp": Grammar(
        "void f() {",
        "class A {",
        "void f(",
        closure="() => {",
        objects=("var x = new A {", "x = {", "new A {"),
        settings=(("class A { int[] a = { ", "};\n}"), ("class A { ", " void F() {}\n}")),
    ),
    "php": Grammar(
        "function f() {",
        "class A {",
        "function f(",
        closure="function() {",
        call="array(",
        settings=(("$a = array( ", ");"), ("f(array( ", "));"), ("class A { ", " function f() {}\n}")),
        member="",
    ),
    "go": Grammar(
        "func f() {",
        "type A struct {",
        "func f(",
        switch="switch 1 {",
        condition="if true {",
        attempt="{",
        loop="{",
        closure="func() {",
        call="f(",
        end="\n",
        attempt_end="",
        loop_end="",
        objects=("_ = A{", "x: A{", "A{"),
        settings=(
            ("type A struct {\n", "\n}"),
            ("var x = A{\n", "\n}"),
            ("import (\n", "\n)"),
            ("func f() {\ng(", "\n)\n}"),
            ("func f() { switch x {", "\n}\n}"),
            ("const (\n", "\n)"),
            ("type A interface {\n", "\n}"),
        ),
        member="",
        in_function=True,
    ),
    "rust": Grammar(
        "fn f() {",
        "impl A {",
        "fn f(",
        switch="match 1 {",
        condition="if true {",
        attempt="{",
        loop="{",
        closure="{",
        call="f(",
        attempt_end="",
        loop_end="",
        arm="=>",
        objects=("struct A {", "x: A {", "A {"),
        settings=(
            ("fn f() { match x { ", "\n} }"),
            ("struct A { ", "\n}"),
            ("enum A { ", "\n}"),
            ("fn f() { let x = A { ", "\n}; }"),
            ("fn f() { let x = [ ", "\n]; }"),
            ("fn f() { x", "\n}"),
        ),
        member=" fn f() {}",
        in_function=True,
    ),
    "kotlin": Grammar(
        "fun f() {",
        "class A {",
        "fun f(",
        switch="when (1) {",
        condition="if (true) {",
        call="f(",
        end="\n",
        loop_end=" while (true)",
        arm="->",
        settings=(("f( ", "\n)"),),
        member=" val x = 0",
    ),
    "swift": Grammar(
        "func f() {",
        "class A {",
        "func f(",
        switch="switch g { case 0:\n",
        condition="if true {",
        attempt="do {",
        loop="repeat {",
        call="g(",
        index="let g = [",
        end="\n",
        attempt_end="",
        loop_end="",
        settings=(("enum G { ", "\n}"), ("switch g { ", "\n}"), ("g { x in ", "\n}"), ("let g = [ ", "\n]")),
        member=" let x = 0",
    ),
}

_MODIFIERS = frozenset(
    {
        "public", "private", "protected", "internal", "static", "abstract", "override", "final", "fun", "func", "fn",
        "function", "class", "interface", "enum", "struct", "impl", "trait", "pub", "namespace", "template",
        "sealed", "virtual", "readonly", "constructor", "fileprivate", "extern", "@", "suspend", "companion",
    }
)  # fmt: skip
_STATEMENTS = frozenset(
    {
        "if", "for", "while", "switch", "else", "return", "do", "try", "throw", "new", "await", "yield", "case",
        "default", "break", "continue", "goto", "delete", "match", "when", "foreach", "let", "const", "var", "echo",
        "print", "typeof", "catch", "finally", "using", "lock", "guard", "defer", "go", "select",
    }
)  # fmt: skip
_OPERATORS = frozenset("+-*/%=&|<?:!^~")
_NEED_OPERAND = frozenset(
    ["new", "typeof", "await", "in", "of", "extends", "import", "case", "instanceof", "throw", "is", "as"]
)


@dataclass(frozen=True)
class _Frame:
    """What a fragment needs around it."""

    openers: str
    open: list[tuple[str, str]]  # bracket, word before it
    tail: str
    last: str  # text of the last token
    end: str = ""  # ends what ``openers`` opened beyond what the fragment closes
    last_closed: str = ""  # the word of the block that the last token closed


def repairs(code: str, language: str, lead: str) -> Iterator[tuple[str, str]]:
    """Yields what to write before and after code, likeliest first.

    Args:
        code: The fragment.
        language: A key of :data:`GRAMMARS`.
        lead: What opens the comment or string that the code starts in; part of each prefix.
    """
    grammar = GRAMMARS[language]
    tokens = tokenize(lead + code, language)
    frame = _fit(tokens, grammar)
    heads, ends = _conditionals(lead + code) if language in ("c", "cpp", "csharp") else ("", "")
    before, behind = heads + frame.openers + lead, frame.end + ends
    operand = frame.tail + _operand(frame, grammar)
    plain = _closers(frame, grammar, "")
    finished = _closers(frame, grammar, grammar.end)
    with_body = _closers(frame, grammar, " {}")
    first = tokens.tokens[0].text if tokens.tokens else ""
    alone = {"else": grammar.condition + "} ", "catch": grammar.attempt + "} ", "finally": grammar.attempt + "} "}
    before = alone.get(first, "") + before
    yield heads + lead, frame.tail + plain + ends
    yield before, operand + finished + behind
    body, group = f"{grammar.function} ", f"{grammar.group} "
    if grammar.in_function:
        yield body + before, operand + finished + behind + "\n}"
        yield body + "\n" + before, frame.tail + plain + behind + "\n}"
    if first in ("case", "default"):
        yield f"{body}{grammar.switch} {before}", f"{operand}{finished}{behind}\n}}\n}}"
    if not grammar.in_function:
        yield body + before, operand + finished + behind + "\n}"
    yield group + before, operand + finished + behind + "\n}"
    yield before, frame.tail + plain + behind
    yield group + before, frame.tail + with_body + behind + "\n}"
    yield before, frame.tail + with_body + behind
    simple = "".join(OPENER_OF[c] for c in reversed(_unopened(tokens.tokens))) + lead
    yield simple, frame.tail + plain
    for opening, closing in grammar.settings:
        yield opening + before, frame.tail + plain + behind + closing
    yield body + before, frame.tail + " 0" + plain + grammar.end + behind + "\n}"
    yield body + simple, frame.tail + ";" * (grammar.end == ";") + plain + "\n}"
    yield group + simple, frame.tail + plain + "\n}"


_BLOCK, _OBJECT = "block", "object"  # openers that depend on what they stand in


def _fit(tokens: Tokens, grammar: Grammar) -> _Frame:
    """Matches brackets; gives an opener to each closer that has none."""
    open_: list[tuple[str, str]] = []
    openers: list[str] = []  # the innermost first
    level = _Level()
    has_members, after_parenthesis, last_closed, ends = False, "", "", ""
    listed = tokens.tokens
    for i, token in enumerate(listed):
        text = token.text
        before = listed[i - 1].text if i else ""
        if text in CLOSER_OF or text == "${":
            key = after_parenthesis if before == ")" and text == "{" else before
            open_.append((text, key))
        elif text in OPENER_OF:
            if open_ and _closer(open_[-1][0])[0] == text:
                bracket, key = open_.pop()
                after_parenthesis = key if bracket == "(" else ""
                last_closed = key if bracket == "{" else ""
                level.is_empty = False
            elif not open_:
                opener = _opener(listed, i, level, grammar, has_members)
                has_members = has_members or opener in (grammar.function, grammar.method, grammar.head)
                openers.append(opener)
                level = _Level()
                last_closed = ""
        elif not open_:
            level.see(text, before, grammar)
    if level.has_case and not grammar.arm:
        openers.append(grammar.switch)
        ends = "\n}"
    elif has_members and grammar.group not in openers and grammar.method:
        openers.append(grammar.group)
        ends = "\n}"
    last = listed[-1].text if listed else ""
    return _Frame(_join(openers, grammar), open_, tokens.tail, last, ends, last_closed if last == "}" else "")


def _join(openers: list[str], grammar: Grammar) -> str:
    """Writes openers, the outermost first; what a block or an object is written as depends on what it stands in."""
    written: list[str] = []
    outer = ""
    for opener in reversed(openers):
        as_statement, as_field, as_item = grammar.objects
        in_list = outer.endswith(("(", "["))
        text = opener
        if opener == _OBJECT:
            text = as_field if outer == _OBJECT else as_item if in_list else as_statement
            if grammar.in_function and outer and text == as_statement:
                text = as_item
        elif opener == _BLOCK:
            in_group = outer in (_OBJECT, grammar.group)
            text = (grammar.method or "{") if in_group else grammar.closure if in_list else "{"
        written.append(text)
        outer = opener
    return "".join(written)


class _Level:
    """What was seen outside brackets since the last closer without an opener."""

    def __init__(self) -> None:
        self.has_case = False
        self.has_statement = False
        self.has_comma = False
        self.is_empty = True

    def see(self, text: str, before: str, grammar: Grammar) -> None:
        if grammar.arm:
            self.has_case |= before + text == grammar.arm
        else:
            self.has_case |= text in ("case", "default") and before != "."
        self.has_statement |= text == ";" or text in _STATEMENTS
        self.has_comma |= text == ","
        self.is_empty = False

    @property
    def is_list(self) -> bool:
        return self.has_comma and not self.has_statement


def _opener(tokens: list[Token], at: int, level: _Level, grammar: Grammar, has_members: bool) -> str:
    """Returns what opens the bracket that the token at a place closes, by what follows it and what came before."""
    closer = tokens[at].text
    follows = tokens[at + 1].text if at + 1 < len(tokens) else ""
    if closer == "]":
        return grammar.index
    if closer == ")":
        is_head = follows == "{" and at and tokens[at - 1].text not in ("(", "{", "}", STRING) and at < 60
        return grammar.head if is_head and any(token.text == "," for token in tokens[:at]) else grammar.call
    if follows in ("catch", "finally", "rescue"):
        return grammar.attempt
    if follows in ("else", "elseif"):
        return grammar.condition
    if follows == "while" and tokens[at + 1].indent < 0:
        return grammar.loop
    if level.has_case:
        return grammar.switch
    if level.is_list:
        return _OBJECT
    if follows.isidentifier() and at + 2 < len(tokens) and tokens[at + 2].text == ";" and level.has_statement:
        return grammar.record
    if has_members:
        return grammar.group
    if follows in (")", ","):
        return _OBJECT if level.is_empty else _BLOCK
    if _starts_member(tokens, at + 1):
        is_function = follows in ("function", "func", "fn", "fun") or not grammar.method
        return grammar.function if is_function else grammar.method
    return _BLOCK


def _starts_member(tokens: list[Token], at: int) -> bool:
    """Whether a function or a class starts here: a modifier, or words and a parameter list before a brace."""
    if at >= len(tokens) or tokens[at].text in _STATEMENTS:
        return False
    if tokens[at].text in _MODIFIERS:
        return True
    depth = 0
    has_parameters = False
    for token in tokens[at : at + 60]:
        if token.text == "(":
            depth += 1
        elif token.text == ")":
            depth -= 1
            has_parameters = True
        elif depth == 0 and token.text == "{":
            return has_parameters
        elif depth == 0 and (token.text in ";=.}{)" or token.text in _STATEMENTS or token.text == STRING):
            return False
    return False


def _unopened(tokens: list[Token]) -> list[str]:
    """Returns the closers without an opener; brackets that do not match are passed over."""
    stack: list[str] = []
    unopened: list[str] = []
    for token in tokens:
        if token.text in CLOSER_OF or token.text == "${":
            stack.append(token.text)
        elif token.text in OPENER_OF:
            if stack and _closer(stack[-1])[0] == token.text:
                stack.pop()
            elif not any(_closer(bracket)[0] == token.text for bracket in stack[-8:]):
                unopened.append(token.text)
    return unopened


def _closer(bracket: str) -> str:
    return "}`" if bracket == "${" else CLOSER_OF[bracket]


_CLOSES_BLOCK = frozenset([")", ";", "{", "}", ">", "", "\n"])


def _closers(frame: _Frame, grammar: Grammar, end: str) -> str:
    """Closes what is open; ``end`` finishes the statement that each block breaks off in."""
    closed = ""
    is_open = frame.last not in (";", "{", "}", "")
    for bracket, key in reversed(frame.open):
        if bracket == "{":
            is_block = key in _CLOSES_BLOCK or key.isidentifier()
            if end and is_block and is_open:
                closed += end
            elif grammar.end == "\n":
                closed += "\n"
            closed += "}"
            if key == "try":
                closed += grammar.attempt_end
            elif key == "do":
                closed += grammar.loop_end
            is_open = not is_block or key in (">", "return")
        else:
            closed += _closer(bracket)
            is_open = True
    if frame.last_closed == "try" and not frame.tail.strip():
        closed = grammar.attempt_end + closed
    return closed + end * is_open


def _operand(frame: _Frame, grammar: Grammar) -> str:
    """Returns what an expression or a declaration that breaks off at the end still needs."""
    last = frame.last
    if frame.tail.strip():
        return ""
    if last == ".":
        return "x"
    if last in _OPERATORS or last in _NEED_OPERAND:
        return " x" if last in _NEED_OPERAND else " 0"
    if last == "," and (not frame.open or frame.open[-1][0] in "(["):
        return " 0"
    if last == "else":
        return " {}"
    return ""


def _conditionals(code: str) -> tuple[str, str]:
    """Returns the ``#if`` lines for the ``#else`` and ``#endif`` without one, and what ends those that are open."""
    heads = depth = 0
    for line in code.split("\n"):
        word = line.strip()
        if not word.startswith("#"):
            continue
        word = word[1:].lstrip()
        if word.startswith("if"):
            depth += 1
        elif word.startswith(("else", "elif", "endif")):
            if depth == 0:
                heads += 1
                depth += 1
            depth -= word.startswith("endif")
    return "#if 1\n" * heads, "\n#endif" * depth
