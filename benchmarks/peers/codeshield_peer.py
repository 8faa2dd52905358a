"""Meta's CodeShield over code blocks: JSON Lines of ``language`` and ``code`` in, findings and times out.

Runs in a virtual environment of its own, since it needs an old semgrep:

    python3.11 -m venv PEER && PEER/bin/pip install codeshield==1.0.1 semgrep==1.100.0

``benchmarks/code_shield_speed.py`` and ``benchmarks/code_shield.py recall --peer PEER`` call it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

# Its semgrep is the one beside this Python.
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
os.environ["SEMGREP_SEND_METRICS"] = "off"
os.environ["SEMGREP_ENABLE_VERSION_CHECK"] = "0"

from codeshield.cs import CodeShield  # type: ignore[import-not-found]
from codeshield.insecure_code_detector import insecure_code_detector  # type: ignore[import-not-found]
from codeshield.insecure_code_detector.languages import Language  # type: ignore[import-not-found]


async def main() -> None:
    seen = {"semgrep": False}
    original = insecure_code_detector._semgrep_analyze

    async def noted(*arguments: Any, **named: Any) -> Any:
        seen["semgrep"] = True
        return await original(*arguments, **named)

    insecure_code_detector._semgrep_analyze = noted
    is_warm = False
    for line in sys.stdin:
        record = json.loads(line)
        language = Language(record["language"])
        if not is_warm:
            await CodeShield.scan_code("x = 1", language)
            is_warm = True
        seen["semgrep"] = False
        started = time.perf_counter()
        result = await CodeShield.scan_code(record["code"], language)
        elapsed = time.perf_counter() - started
        issues = [{"cwe": issue.cwe_id, "line": issue.line} for issue in result.issues_found or []]
        print(json.dumps({"ms": elapsed * 1000, "semgrep": seen["semgrep"], "issues": issues}), flush=True)


asyncio.run(main())
