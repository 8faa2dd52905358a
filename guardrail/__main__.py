"""``python -m guardrail``: the command line."""

from __future__ import annotations

from guardrail.cli import main

if __name__ == "__main__":
    main()
