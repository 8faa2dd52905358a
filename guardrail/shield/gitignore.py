"""What ``.gitignore`` files leave out of a folder: those in it, above it up to the repository's root, and below.

Grammar: https://git-scm.com/docs/gitignore, read by pathspec. Without pathspec nothing is ignored: more is scanned,
never less. A file that git tracks although a pattern names it counts as ignored; the scan says how many there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

__all__ = ["Ignored"]

_MAX_BYTES = 1_000_000


class Ignored:
    """Says whether a path is ignored; folders are entered from the top down.

    Args:
        top: The folder that is walked.
    """

    def __init__(self, top: Path) -> None:
        self._specs: dict[Path, GitIgnoreSpec] = {}
        absolute = top.absolute()
        root = next((folder for folder in (absolute, *absolute.parents) if (folder / ".git").exists()), absolute)
        for folder in reversed(absolute.parents):
            if folder.is_relative_to(root):
                self.enter(folder)

    def enter(self, folder: Path) -> None:
        """Reads the folder's own file, if it has one."""
        file = folder / ".gitignore"
        try:
            from pathspec import GitIgnoreSpec

            if file.is_file() and file.stat().st_size <= _MAX_BYTES:
                lines = file.read_text("utf-8", errors="replace").splitlines()
                self._specs[folder.absolute()] = GitIgnoreSpec.from_lines(lines)
        except (ImportError, OSError, ValueError):  # what cannot be read ignores nothing
            return

    def matches(self, path: Path, *, is_folder: bool) -> bool:
        """Whether a path is ignored; the deepest file that says something about it decides."""
        absolute = path.absolute()
        for folder in absolute.parents:
            spec = self._specs.get(folder)
            if spec is None:
                continue
            name = absolute.relative_to(folder).as_posix() + ("/" if is_folder else "")
            include = spec.check_file(name).include
            if include is not None:
                return include
        return False
