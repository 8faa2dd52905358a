"""The command line: ``guardrail check | scan | report | scan-code | eval | serve | policy | rules | doctor``.

Exit codes, the same in every command:

====  ==============================================================================
0     Done; ``check``: the text may pass
1     It could not be done, e.g. the disk is full; ``doctor`` or ``rules test`` found a fault
2     Bad usage: an argument, a setting, a policy, a rule, an input that cannot work
3     No: a blocked text, a block rate above ``--max-block-rate``, a finding that ``--fail-on`` names
4     ``scan``, ``scan-code``, ``eval``: complete, and some rows or files could not be judged
130   Interrupted
====  ==============================================================================

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import guardrail
from guardrail.cli import check, doctor, evaluate, policy, report, rules, scan, scan_code, serve
from guardrail.cli.console import ExitCode, say_error
from guardrail.errors import ConfigurationError, GuardrailError, InvalidInput

__all__ = ["app", "main"]


class _Group(TyperGroup):
    """Turns guardrail's errors into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # typer's versions have contexts of different libraries
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say_error("interrupted")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except (ConfigurationError, InvalidInput) as exc:
            say_error(str(exc))
            raise typer.Exit(ExitCode.USAGE) from exc
        except GuardrailError as exc:
            say_error(str(exc))
            raise typer.Exit(ExitCode.FAILED) from exc
        except BrokenPipeError:  # `| head` has what it wanted; click ends the program for it
            raise
        except OSError as exc:
            say_error(f"{exc.filename or 'standard input or output'}: {exc.strerror}")
            raise typer.Exit(ExitCode.FAILED) from exc


app = typer.Typer(
    cls=_Group,
    name="guardrail",
    help="Safety classification for chatbots: judge texts, scan chat logs, run the sidecar.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("check")(check.check)
app.command("scan")(scan.scan)
app.command("report")(report.report)
app.command("scan-code")(scan_code.scan_code)
app.add_typer(evaluate.app, name="eval")
app.command("serve")(serve.serve)
app.add_typer(policy.app, name="policy")
app.add_typer(rules.app, name="rules")
app.command("doctor")(doctor.doctor)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"guardrail {guardrail.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Safety classification for chatbots: judge texts, scan chat logs, run the sidecar."""


def main() -> None:
    """Runs the command line; the entry point ``guardrail``."""
    # The fast tokenizers warn about forks; semgrep is one.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()
