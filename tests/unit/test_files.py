"""Which files are scanned, as which language, and that nothing is left out in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guardrail.shield.files import MAX_BYTES, NotScanned, SourceFile, Why, find_files, read_stdin

LANGUAGES = frozenset({"python", "javascript", "c", "cpp", "bash", "dockerfile", "php", "yaml", "hcl"})


def make(root: Path, **files: str | bytes) -> Path:
    """Writes files; ``__`` in a name is ``/``, ``_dot_`` a dot."""
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def look(*paths: Path) -> tuple[dict[str, SourceFile], dict[str, Why]]:
    """Returns what is scanned and what is not, by name."""
    scanned: dict[str, SourceFile] = {}
    left_out: dict[str, Why] = {}
    for found in find_files(paths, LANGUAGES):
        name = found.path.removeprefix(f"{paths[0]}/")
        if isinstance(found, SourceFile):
            scanned[name] = found
        else:
            left_out[name] = found.why
    return scanned, left_out


@pytest.mark.parametrize(
    ("name", "text", "language"),
    [
        ("a.py", "x", "python"),
        ("a.mjs", "x", "javascript"),
        ("a.h", "x", "c"),
        ("a.HPP", "x", "cpp"),
        ("main.tf", "x", "hcl"),
        ("Dockerfile", "FROM x", "dockerfile"),
        ("Dockerfile.dev", "FROM x", "dockerfile"),
        ("web.dockerfile", "FROM x", "dockerfile"),
        ("dockerfile.yaml", "a: 1", "yaml"),
        (".bashrc", "x", "bash"),
        ("run", "#!/bin/sh\nx", "bash"),
        ("run", "#!/usr/bin/env python3.11\nx", "python"),
        ("run", "#!/usr/bin/env -S node --x\nx", "javascript"),
        ("ci.yml", "a: 1", "yaml"),
    ],
)
def test_the_language_comes_from_the_name_and_the_first_line(
    tmp_path: Path, name: str, text: str, language: str
) -> None:
    """Suffix, whole name, or interpreter."""
    (tmp_path / name).write_text(text, "utf-8")
    scanned, _ = look(tmp_path)
    assert [block.language for block in scanned[name].blocks] == [language]


def test_what_is_no_program_is_passed_over(tmp_path: Path) -> None:
    """Data, prose and images are not code, and are no news either."""
    make(tmp_path, a_dot_json="{}", b_dot_png=b"\x89PNG\0", LICENSE="words", c_dot_txt="x = 1")
    assert look(tmp_path) == ({}, {})


def test_what_is_left_out_of_a_folder_is_said_with_its_reason(tmp_path: Path) -> None:
    """A scan that looked past something does not look like one that saw it all."""
    make(
        tmp_path,
        _dot_git__hook_dot_py="x",
        node_modules__m__i_dot_js="x",
        env__pyvenv_dot_cfg="",
        env__lib_dot_py="x",
        vendor__v_dot_php="x",
        jquery_dot_min_dot_js="x",
        packed_dot_js="x=1;" * 3000,
        big_dot_py="#" * (MAX_BYTES + 1),
        blob_dot_py=b"x\0y",
        view_dot_scala="x",
        keep_dot_py="x = 1",
    )
    os.symlink(tmp_path / "keep.py", tmp_path / "link.py")
    os.symlink(tmp_path, tmp_path / "loop")
    scanned, left_out = look(tmp_path)
    assert list(scanned) == ["keep.py"]
    assert left_out == {
        ".git/": Why.EXCLUDED,
        "node_modules/": Why.EXCLUDED,
        "env/": Why.EXCLUDED,
        "vendor/": Why.EXCLUDED,
        "jquery.min.js": Why.MINIFIED,
        "packed.js": Why.MINIFIED,
        "big.py": Why.TOO_LARGE,
        "blob.py": Why.BINARY,
        "view.scala": Why.NO_RULES,
        "link.py": Why.LINK,
        "loop/": Why.LINK,
    }


def test_a_named_file_is_scanned_whatever_it_is_called(tmp_path: Path) -> None:
    """Who names a file means it: also one in a folder that is left out, minified, or without a suffix."""
    make(tmp_path, vendor__a_dot_min_dot_js="x", program="import os\n\ndef f(x):\n    return os.getcwd()\n")
    scanned, left_out = look(tmp_path / "vendor" / "a.min.js", tmp_path / "program", tmp_path / "vendor")
    assert len(scanned) == 2
    assert left_out == {}


@pytest.mark.parametrize("name", ["big.py", "blob.py", "view.scala", "words", "dangling.py"])
def test_a_named_file_that_cannot_be_scanned_is_a_failure(tmp_path: Path, name: str) -> None:
    """It was asked for by name, so leaving it out is not the expected thing."""
    make(tmp_path, big_dot_py="#" * (MAX_BYTES + 1), blob_dot_py=b"x\0y", view_dot_scala="x", words="good morning")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling.py")
    (found,) = find_files([tmp_path / name], LANGUAGES)
    assert isinstance(found, NotScanned)
    assert found.why is Why.FAILED


def test_gitignore_is_read_above_in_and_below_the_folder(tmp_path: Path) -> None:
    """As git does: the deepest file that says something decides, and the repository's root counts."""
    make(
        tmp_path,
        _dot_git__HEAD="",
        _dot_gitignore="*.gen.py\nout/\n/src/deep/skip.py\n",
        src___dot_gitignore="!kept.gen.py\nlocal.py\n",
        src__a_dot_gen_dot_py="x",
        src__kept_dot_gen_dot_py="x",
        src__local_dot_py="x",
        src__out__o_dot_py="x",
        src__deep__skip_dot_py="x",
        src__deep__stay_dot_py="x",
    )
    scanned, left_out = look(tmp_path / "src")
    assert list(scanned) == ["kept.gen.py", "deep/stay.py"]
    assert left_out == dict.fromkeys(["a.gen.py", "local.py", "out/", "deep/skip.py"], Why.IGNORED)


def test_a_file_is_scanned_once(tmp_path: Path) -> None:
    """Named twice, or in a folder that is named too."""
    make(tmp_path, a_dot_py="x")
    assert len(list(find_files([tmp_path, tmp_path / "a.py", tmp_path], LANGUAGES))) == 1


def test_markdown_gives_its_code_blocks(tmp_path: Path) -> None:
    """Each with its place; what has no rules is named by line, and data is no code."""
    text = "# T\n\n```python\nx = 1\n```\n\n```scala\nval x = 1\n```\n\n```json\n{}\n```\n\n```\nwords\n```\n"
    make(tmp_path, README_dot_md=text)
    found = list(find_files([tmp_path / "README.md"], LANGUAGES))
    (source,) = [each for each in found if isinstance(each, SourceFile)]
    (block,) = source.blocks
    assert (block.language, text[block.span.start : block.span.end]) == ("python", "x = 1")
    left_out = [(each.line, each.why) for each in found if isinstance(each, NotScanned)]
    assert left_out == [(8, Why.NO_RULES), (16, Why.NO_RULES)]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("ä = 1".encode(), "ä = 1"),
        (b"\xef\xbb\xbfx = 1", "x = 1"),
        ("x = 'ä'".encode("latin-1"), "x = 'ä'"),
        ("x = 1".encode("utf-16"), "x = 1"),
    ],
)
def test_bytes_become_text_one_for_one(tmp_path: Path, data: bytes, text: str) -> None:
    """Whatever the encoding, a column is a character."""
    make(tmp_path, a_dot_py=data)
    assert look(tmp_path)[0]["a.py"].text == text


class TestStdin:
    def test_a_language_makes_it_code(self) -> None:
        """All of it, fences included."""
        (source,) = read_stdin(b"```\nx\n```\n", "python", LANGUAGES)
        assert isinstance(source, SourceFile)
        assert [block.code for block in source.blocks] == ["```\nx\n```\n"]

    def test_an_answer_gives_its_blocks(self) -> None:
        """As in a chat."""
        (source,) = read_stdin(b"Use:\n\n```js\nx\n```\n", None, LANGUAGES)
        assert isinstance(source, SourceFile)
        assert [(block.language, block.code) for block in source.blocks] == [("javascript", "x")]

    def test_plain_code_is_known_as_such(self) -> None:
        """A file that is piped in is not an answer whose indented lines are its code."""
        code = b"import os\n\ndef f(name):\n\n    os.system(name)\n"
        (source,) = read_stdin(code, None, LANGUAGES)
        assert isinstance(source, SourceFile)
        assert [block.code.encode() for block in source.blocks] == [code]

    def test_a_language_without_rules_is_a_failure(self) -> None:
        """It was to be scanned."""
        (found,) = read_stdin(b"x", "scala", LANGUAGES)
        assert isinstance(found, NotScanned)
        assert found.why is Why.FAILED
