"""Stored results decided again: the same policy decides the same, another one says what flips, none sees a text."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from guardrail.cli import app
from guardrail.code_shield import CodeShield
from guardrail.errors import ConfigurationError, InvalidInput
from guardrail.logscan.replay import CODE_SHIELD, Cause, Replayer, diff, replay
from guardrail.logscan.stored import read_results
from guardrail.policy import Policy, RailPolicy, Rule, load_policy, parse_policy
from guardrail.suppression import Suppression
from guardrail.taxonomy import HazardCategory
from guardrail.testing import FailingScanner
from guardrail.verdict import (
    Action,
    Confidence,
    Finding,
    Outcome,
    Rail,
    ReasonKind,
    Severity,
    Source,
    Span,
    Verdict,
    unverified,
)
from guardrail.verdict_json import read_verdict

GUARD, SHIELD = Source("a-guard", "r1", "t1"), Source(CODE_SHIELD, "rules-1")
DEFAULT = load_policy("default")


def hazard(score: float, category: HazardCategory = HazardCategory.HATE, *, named: bool = False) -> Verdict:
    outcome = Outcome.UNSAFE if score >= 0.5 else Outcome.SAFE
    return Verdict(outcome, GUARD, {category: score}, (category,) if named else (), score)


def finding(rule_id: str = "python.sql", cwe: str = "CWE-89", severity: Severity = Severity.ERROR) -> Finding:
    return Finding(rule_id, cwe, severity, Span(3, 9), 2, 1, "python", "What is wrong.", Confidence.HIGH, "Mend it.")


def code(*findings: Finding) -> Verdict:
    return Verdict(Outcome.UNSAFE if findings else Outcome.SAFE, SHIELD, findings=findings)


def row(*verdicts: Verdict, policy: Policy = DEFAULT, rail: Rail = Rail.PROMPT, id: Any = "log.jsonl:1") -> Any:
    """A row as a scan stores it."""
    return json.loads(json.dumps({"id": id, **policy.decide(rail, verdicts).to_dict()}))


BAD = {"id": "log.jsonl:9", "decision": None, "outcome": "unverified", "error": "not JSON", "file": "l", "line": 9}


def stored(path: Path, *rows: Any) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows), "utf-8")
    return path


shares = st.floats(0, 1) | st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])
actions = st.sampled_from(Action)
findings = st.builds(
    Finding,
    st.sampled_from(["python.sql", "python.weak-hash", "go.tls"]),
    st.sampled_from(["CWE-89", "CWE-328"]),
    st.sampled_from(Severity),
    st.builds(lambda start, length: Span(start, start + length), st.integers(0, 99), st.integers(0, 99)),
    st.integers(1, 9),
    st.integers(1, 9),
    st.just("python"),
    st.text(max_size=5),
    st.sampled_from(Confidence),
    st.text(max_size=5),
)
verdicts = st.builds(
    Verdict,
    st.sampled_from(Outcome),
    st.sampled_from([GUARD, SHIELD]),
    st.dictionaries(st.sampled_from(HazardCategory), shares),
    st.lists(st.sampled_from(HazardCategory), unique=True, max_size=3).map(tuple),
    st.none() | shares,
    st.lists(findings, max_size=2).map(tuple),
    st.lists(st.sampled_from(["cobol", "other"]), unique=True).map(tuple),
    st.text(max_size=5),
)
rails = st.builds(
    RailPolicy,
    st.builds(Rule, actions, shares),
    st.dictionaries(st.sampled_from(HazardCategory), st.builds(Rule, actions, shares)),
    st.dictionaries(st.sampled_from(Severity), actions | st.dictionaries(st.sampled_from(Confidence), actions)),
)
policies = st.builds(
    lambda prompt, response, suppressions, unverified, unscanned: Policy(
        rails={Rail.PROMPT: prompt, Rail.RESPONSE: response},
        suppressions=suppressions,
        on_unverified=unverified,
        on_unscanned_code=unscanned,
    ),
    rails,
    rails,
    st.lists(st.builds(Suppression, st.sampled_from(["python.*", "go.tls"])), max_size=1).map(tuple),
    actions,
    actions,
)


class TestReadVerdict:
    @given(verdict=verdicts)
    def test_what_was_written_reads_back_as_the_same(self, verdict: Verdict) -> None:
        """A verdict survives the way through a file, times apart."""
        assert read_verdict(json.loads(json.dumps(verdict.to_dict()))) == verdict

    def test_keys_of_a_later_version_are_passed_over(self) -> None:
        """A file that says more can still be read."""
        assert read_verdict({**hazard(0.2).to_dict(), "later": 1}) == hazard(0.2)

    @pytest.mark.parametrize("name", list(code(finding()).to_dict()))
    def test_a_missing_field_is_an_error_that_names_it(self, name: str) -> None:
        """Nothing is filled in: what is not there could have made the decision stricter."""
        values = code(finding()).to_dict()
        del values[name]
        with pytest.raises(InvalidInput, match=f"verdict: expected a field {name}"):
            read_verdict(values)

    @pytest.mark.parametrize("name", list(finding().to_dict()))
    def test_so_it_is_in_a_finding(self, name: str) -> None:
        """The error says which finding."""
        values = code(finding()).to_dict()
        del values["findings"][0][name]
        with pytest.raises(InvalidInput, match=rf"verdict\.findings\[0\]: expected a field {name}"):
            read_verdict(values)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"outcome": "fine"}, "outcome: expected one of safe, unsafe, unverified; got 4 other characters"),
            ({"unsafe_probability": 1.5}, "unsafe_probability: expected a number in 0..1"),
            ({"unsafe_probability": True}, "unsafe_probability: expected a number in 0..1"),
            ({"scores": {"secret words": 0.5}}, "scores: expected one of violent_crimes, .*; got 12 other characters"),
            ({"scores": {"hate": "0.5"}}, "scores: expected a number in 0..1"),
            ({"scores": [0.5]}, "scores: expected dict, got list"),
            ({"categories": ["S9"]}, "categories: expected one of"),
            ({"unscanned": [3]}, "unscanned: expected str, got int"),
            ({"detail": None}, "detail: expected str, got NoneType"),
        ],
    )
    def test_a_wrong_value_is_an_error_without_the_value(self, change: dict[str, Any], message: str) -> None:
        """Whatever stands in a file, an error names the field and does not repeat it."""
        with pytest.raises(InvalidInput, match=message) as caught:
            read_verdict({**hazard(0.2).to_dict(), **change})
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("change", [{"start": 10, "end": 9}, {"line": 0}, {"column": True}, {"cwe": "89"}])
    def test_a_finding_in_no_place_is_an_error(self, change: dict[str, Any]) -> None:
        """A place that cannot be is not read as one."""
        values = code(finding()).to_dict()
        values["findings"][0] |= change
        with pytest.raises(InvalidInput, match=r"findings\[0\]"):
            read_verdict(values)


class TestReplayer:
    @settings(max_examples=100)
    @given(policy=policies, rail=st.sampled_from(Rail), judged=st.lists(st.lists(verdicts, max_size=2), max_size=6))
    def test_the_policy_that_was_used_gives_the_stored_decisions_again(
        self, policy: Policy, rail: Rail, judged: list[list[Verdict]]
    ) -> None:
        """Nothing that decides is lost on the way through a file, nor among rows that look alike."""
        replayer = Replayer(policy)
        for verdicts_of_row in judged:
            # The guard asks for code verdicts only where the policy treats findings.
            asked = [v for v in verdicts_of_row if v.source is not SHIELD or policy.rails[rail].scans_code]
            one = row(*asked, policy=policy, rail=rail)
            assert replayer.rulings(one)[0].action.value == one["decision"]
            again = replayer.decide(one, policy).to_dict()
            assert again == {name: value for name, value in one.items() if name != "id"}

    @settings(max_examples=100)
    @given(
        two=st.tuples(policies, policies),
        rail=st.sampled_from(Rail),
        base=verdicts,
        others=st.lists(verdicts, max_size=3),
    )
    def test_rows_that_share_a_signature_share_everything_a_ruling_says(
        self, two: tuple[Policy, Policy], rail: Rail, base: Verdict, others: list[Verdict]
    ) -> None:
        """A ruling from memory is the one that deciding anew would give, for rows that are nearly alike too."""
        near = [
            replace(base, **{name: getattr(other, name)})
            for other in others
            for name in ("outcome", "source", "scores", "categories", "unsafe_probability", "findings", "unscanned")
        ]
        shared = Replayer(*two)
        for verdict in (base, *near, *others):
            one = row(verdict, rail=rail)
            assert shared.rulings(one) == Replayer(*two).rulings(one)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (hazard(0.29), hazard(0.3)),
            (hazard(0.1), hazard(0.1, HazardCategory.PRIVACY, named=True)),
            tuple(replace(hazard(0.1, named=True), unsafe_probability=unsafe) for unsafe in (0.2, 0.35)),
            (replace(hazard(0.0), unsafe_probability=0.2), hazard(0.0)),
            (replace(hazard(0.1), outcome=Outcome.UNVERIFIED), hazard(0.1)),
            (replace(hazard(0.1), unscanned=("cobol",)), hazard(0.1)),
            (code(finding()), code(replace(finding(), confidence=Confidence.LOW))),
            (code(finding()), code(replace(finding(), severity=Severity.INFO))),
            (code(finding()), code(replace(finding(), rule_id="go.tls"))),
            (code(finding()), code(replace(finding(), cwe="CWE-90"))),
            (replace(code(), source=GUARD), code()),
        ],
    )
    def test_rows_that_a_policy_tells_apart_have_signatures_of_their_own(self, one: Verdict, other: Verdict) -> None:
        """Each thing that a policy can see makes a difference, whichever row comes first."""
        policy = parse_policy(
            "version: 1\nrails:\n  response:\n    unsafe: {action: flag, threshold: 0.15}\n"
            "    categories: {hate: {action: block, threshold: 0.3}, privacy: {action: flag, threshold: 0.05}}\n"
            "    findings: {info: allow, warning: flag, error: {low: flag, medium: block, high: block}}\n"
            "suppressions: [{rule: go.*}]\non_unscanned_code: flag\n"
        )
        apart = [Replayer(policy).rulings(row(each, rail=Rail.RESPONSE)) for each in (one, other)]
        assert apart[0] != apart[1]
        for pair in ((one, other), (other, one)):
            shared = Replayer(policy)
            together = [shared.rulings(row(each, rail=Rail.RESPONSE)) for each in pair]
            assert together == (apart if pair[0] is one else apart[::-1])

    def test_rows_that_differ_in_what_no_policy_sees_are_decided_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The fast path is there: scores between the same thresholds, other places and messages are one signature."""
        asked = 0
        decide = Policy.decide

        def counted(self: Policy, *args: Any, **kwargs: Any) -> Any:
            nonlocal asked
            asked += 1
            return decide(self, *args, **kwargs)

        rows = [row(hazard(0.01 * n), code(replace(finding(), line=n, message=str(n)))) for n in range(1, 20)]
        monkeypatch.setattr(Policy, "decide", counted)
        replayer = Replayer(load_policy("strict"))
        assert len({replayer.rulings(one)[0].action for one in rows}) == 1
        assert asked == 1

    @pytest.mark.parametrize("score", [True, 1.5, -0.5, "0.5", None])
    def test_a_score_that_is_none_is_an_error_however_well_its_like_is_known(self, score: Any) -> None:
        """What could be taken for a known signature is still read with care."""
        replayer = Replayer(DEFAULT)
        for known in (0.0, 1.0, 0.5):
            replayer.rulings(row(hazard(known)))
        bad = row(hazard(0.5))
        bad["verdicts"][0]["scores"]["hate"] = score
        with pytest.raises(InvalidInput, match=r"scores: expected a number in 0\.\.1"):
            replayer.rulings(bad)

    def test_whole_numbers_are_scores(self) -> None:
        """Another JSON writer may write 1.0 as 1."""
        one = row(hazard(1.0))
        one["verdicts"][0]["scores"]["hate"] = 1
        assert Replayer(DEFAULT).rulings(one)[0].action is Action.BLOCK

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rail": "side"}, "rail: expected one of prompt, response"),
            ({"verdicts": None}, "verdicts: expected a list"),
        ],
    )
    def test_a_row_without_rail_or_verdicts_is_an_error(self, change: dict[str, Any], message: str) -> None:
        """Nothing is decided of what is not there."""
        with pytest.raises(InvalidInput, match=message):
            Replayer(DEFAULT).rulings({**row(hazard(0.1)), **change})

    def test_a_bad_row_has_no_ruling(self) -> None:
        """A row that could not be read from the log is not decided."""
        assert Replayer(DEFAULT).rulings(BAD) == ()

    def test_code_is_left_out_where_the_new_policy_would_not_have_asked(self) -> None:
        """A code verdict without an answer does not block prompts under a policy that does not examine their code."""
        one = row(hazard(0.1), unverified(SHIELD, "deadline"), policy=load_policy("strict"))
        assert one["decision"] == "block"
        assert Replayer(DEFAULT).rulings(one)[0].action is Action.ALLOW

    def test_code_that_was_never_examined_is_told(self) -> None:
        """A row without a code verdict is no row without findings."""
        one = row(hazard(0.1), rail=Rail.RESPONSE)
        (ruling,) = Replayer(DEFAULT).rulings(one)
        assert ruling.without_code
        (ruling,) = Replayer(DEFAULT).rulings(row(hazard(0.1), code(), rail=Rail.RESPONSE))
        assert not ruling.without_code

    def test_code_shield_calls_itself_so(self) -> None:
        """The name by which code verdicts are known is the one that they bear."""
        assert CodeShield(FailingScanner()).source.model == CODE_SHIELD

    def test_a_suppression_ends_on_its_day(self) -> None:
        """The day can be given, so that a replay of an old scan says what that day said."""
        policy = replace(DEFAULT, suppressions=(Suppression(cwe="CWE-89", until=date(2026, 1, 31)),))
        one = row(hazard(0.1), code(finding()), rail=Rail.RESPONSE)
        days = {day: Replayer(policy, today=date(2026, day, 1)).rulings(one)[0].action for day in (1, 2)}
        assert days[1] is Action.ALLOW
        assert days[2] is not Action.ALLOW


class TestReadResults:
    def test_plain_and_gzipped_are_read_alike(self, tmp_path: Path) -> None:
        """A gzipped file is known by its content, whatever it is called; blank lines are no rows."""
        plain = stored(tmp_path / "a.jsonl", row(hazard(0.1)), "", BAD)
        packed = tmp_path / "b"
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        assert list(read_results(plain)) == list(read_results(packed))
        assert [number for number, _ in read_results(plain)] == [1, 3]

    def test_an_id_with_a_lone_surrogate_is_read(self, tmp_path: Path) -> None:
        """The scan writes such an id as an escape; it does not cost the row."""
        (one,) = read_results(stored(tmp_path / "a.jsonl", json.dumps(row(hazard(0.1), id="\ud800"))))
        assert one[1]["id"] == "\ud800"

    @pytest.mark.parametrize(
        "line", ["{", '{"id": 1}', "[1]", '{"id": 1, "decision": NaN}', '{"id": 1, "decision": "al', "[" * 99999]
    )
    def test_a_line_that_is_no_result_is_an_error_with_its_place(self, tmp_path: Path, line: str) -> None:
        """A file that was cut short is not taken for a shorter scan."""
        path = stored(tmp_path / "a.jsonl", row(hazard(0.1)), line)
        with pytest.raises(InvalidInput, match=r"a\.jsonl:2: not a result"):
            list(read_results(path))

    def test_parquet_says_what_the_lines_say(self, tmp_path: Path) -> None:
        """The same rows, findings and bad rows among them; so the same replay."""
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        from guardrail.logscan.parquet import results_to_parquet

        place = {"file": "a", "line": 3, "turn": 1, "hash": "0"}
        bad = {"id": "x", **place, "decision": None, "outcome": "unverified", "error": "no"}
        good = [{**row(hazard(0.9)), **place}, {**row(code(finding())), **place}]
        lines = stored(tmp_path / "a.jsonl", *good, bad)
        results_to_parquet(lines, tmp_path / "a.parquet")
        assert [found for _, found in read_results(tmp_path / "a.parquet")] == [
            found for _, found in read_results(lines)
        ]
        assert replay([tmp_path / "a.parquet"], DEFAULT).to_dict() == replay([lines], DEFAULT).to_dict()

    def test_a_damaged_parquet_file_is_an_error(self, tmp_path: Path) -> None:
        """It says what the file is not."""
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        path = tmp_path / "a.parquet"
        path.write_bytes(b"PAR1\0\0")
        with pytest.raises(InvalidInput, match="not the results of a scan, or damaged"):
            list(read_results(path))

    def test_a_gzip_stream_that_ends_too_soon_is_an_error(self, tmp_path: Path) -> None:
        """Half of a file is not read as all of it."""
        path = tmp_path / "a.gz"
        path.write_bytes(gzip.compress(json.dumps(row(hazard(0.1))).encode() * 50)[:-20])
        with pytest.raises(ConfigurationError, match="too soon or is damaged"):
            list(read_results(path))


class TestReplay:
    def test_it_counts_by_action_rail_category_and_weakness(self, tmp_path: Path) -> None:
        """Each row counts once for each cause, at the strictest action that the cause asks for."""
        both = (finding(), finding("python.sql-two"), finding("python.hash", "CWE-328", Severity.WARNING))
        path = stored(
            tmp_path / "r.jsonl",
            row(hazard(0.9, named=True)),
            row(hazard(0.1), code(*both), rail=Rail.RESPONSE),
            row(unverified(GUARD, "deadline")),
            BAD,
        )
        counts = replay([path], DEFAULT)
        assert (counts.rows, counts.bad_rows, counts.changed) == (4, 1, 0)
        assert counts.decisions[Rail.PROMPT, Action.BLOCK] == 2
        assert counts.asks == {
            (Cause(ReasonKind.HAZARD, "hate"), Action.BLOCK): 1,
            (Cause(ReasonKind.FINDING, "CWE-89"), DEFAULT.rails[Rail.RESPONSE].treatment(*levels(finding()))): 1,
            (Cause(ReasonKind.FINDING, "CWE-328"), Action.FLAG): 1,
            (Cause(ReasonKind.UNVERIFIED, "unverified"), DEFAULT.on_unverified): 1,
        }
        values = counts.to_dict()
        assert [cause["subject"] for cause in values["causes"]] == ["hate", "CWE-89", "CWE-328", "unverified"]
        assert sum(values["decisions"].values()) == 3

    def test_the_output_is_results_of_the_new_policy(self, tmp_path: Path) -> None:
        """Decisions, reasons and policy are new; ids, verdicts and other keys stay; a bad row stays what it is."""
        path = stored(tmp_path / "r.jsonl", {**row(hazard(0.9)), "kept": {"lang": "de"}}, BAD)
        out, again = tmp_path / "new.jsonl.gz", tmp_path / "again.jsonl"
        monitor = load_policy("monitor")
        replay([path], monitor, output=out)
        (_, first), (_, second) = read_results(out)
        assert second == BAD
        assert first["kept"] == {"lang": "de"}
        assert first["policy"] == {"name": "monitor", "hash": monitor.hash}
        assert first["decision"] == monitor.decide(Rail.PROMPT, [hazard(0.9)]).action.value != "block"
        assert replay([out], monitor).changed == 0
        replay([out], DEFAULT, output=again)
        assert [one for _, one in read_results(again)] == [one for _, one in read_results(path)]

    def test_an_error_leaves_an_earlier_output_alone(self, tmp_path: Path) -> None:
        """A file under its name is complete."""
        path, out = stored(tmp_path / "r.jsonl", row(hazard(0.1)), "{"), stored(tmp_path / "out.jsonl", "before")
        with pytest.raises(InvalidInput):
            replay([path], DEFAULT, output=out)
        assert out.read_text("utf-8") == "before\n"

    def test_an_error_in_a_row_has_its_place(self, tmp_path: Path) -> None:
        """Of a million rows one can be found."""
        path = stored(tmp_path / "r.jsonl", row(hazard(0.1)), {**row(hazard(0.1)), "verdicts": [{}]})
        with pytest.raises(InvalidInput, match=r"r\.jsonl:2: verdicts\[0\]: expected a field unsafe_probability"):
            replay([path], DEFAULT)


def levels(one: Finding) -> tuple[Severity, Confidence]:
    return one.severity, one.confidence


class TestDiff:
    def test_flips_are_counted_by_action_and_by_cause_with_samples(self, tmp_path: Path) -> None:
        """Only rows whose decision changes count; samples are places and ids, as many as asked for."""
        new = parse_policy("version: 1\nrails: {prompt: {categories: {hate: {threshold: 0.95}}}}")
        rows = [row(hazard(0.9, named=True), id=f"id-{n}") | {"file": "log.jsonl", "line": n} for n in range(1, 8)]
        path = stored(tmp_path / "r.jsonl", row(hazard(0.1)), *rows, row(hazard(0.99, named=True)), BAD)
        found = diff([path], parse_policy("version: 1"), new, samples=2)
        assert (found.rows, found.bad_rows, found.flipped) == (10, 1, 7)
        ((before, after, flip),) = found.by_action()
        assert (before, after, flip.rows) == (Action.BLOCK, Action.ALLOW, 7)
        assert [(sample.place, sample.id) for sample in flip.samples] == [
            ("log.jsonl:1", "id-1"),
            ("log.jsonl:2", "id-2"),
        ]
        ((cause, asked, asks, flip),) = found.by_cause()
        assert (cause, asked, asks, flip.rows) == (Cause(ReasonKind.HAZARD, "hate"), Action.BLOCK, None, 7)

    def test_a_cause_that_asks_for_the_same_is_not_what_flipped_the_row(self, tmp_path: Path) -> None:
        """A row with two causes flips over the one whose rule changed."""
        both = row(hazard(0.9, named=True), code(finding()), rail=Rail.RESPONSE)
        old = parse_policy("version: 1\nrails: {response: {unsafe: {action: flag}, findings: {error: flag}}}")
        new = parse_policy("version: 1\nrails: {response: {unsafe: {action: flag}, findings: {error: block}}}")
        found = diff([stored(tmp_path / "r.jsonl", both)], old, new)
        assert [(cause.subject, before, after) for cause, before, after, _ in found.by_cause()] == [
            ("CWE-89", Action.FLAG, Action.BLOCK)
        ]

    def test_a_row_is_found_without_a_place_of_its_own(self, tmp_path: Path) -> None:
        """An id that is a place is one; else the line of the results says where to look."""
        path = stored(tmp_path / "r.jsonl", row(hazard(0.9), id="a/b:c.csv:12"), row(hazard(0.9), id=7))
        found = diff([path], DEFAULT, load_policy("monitor"))
        (_, _, flip) = found.by_action()[0]
        assert [(sample.place, sample.id) for sample in flip.samples] == [
            ("a/b:c.csv:12", "a/b:c.csv:12"),
            (f"{path}:2", "7"),
        ]

    @given(two=st.tuples(policies, policies), judged=st.lists(verdicts, max_size=4))
    @settings(max_examples=100)
    def test_a_policy_never_differs_from_itself_and_every_flip_has_a_cause(
        self, two: tuple[Policy, Policy], judged: list[Verdict], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Flips are those that two full replays would show."""
        path = stored(tmp_path_factory.mktemp("d") / "r.jsonl", *(row(verdict) for verdict in judged))
        assert diff([path], two[0], two[0]).flipped == 0
        found = diff([path], *two)
        rows = [one for _, one in read_results(path)]
        assert found.flipped == sum(
            Replayer().decide(one, two[0]).action is not Replayer().decide(one, two[1]).action for one in rows
        )
        assert bool(found.by_cause()) == bool(found.flipped)


def run(*args: str | Path) -> Any:
    return CliRunner().invoke(app, ["policy", *map(str, args)], env={"COLUMNS": "100"})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    secret = replace(hazard(0.1), detail="hush")
    return stored(
        tmp_path / "results.jsonl",
        row(hazard(0.9, named=True)),
        row(secret, code(finding()), rail=Rail.RESPONSE, id="esc\x1b[31m"),
        BAD,
    )


class TestCommands:
    def test_replay_prints_tables_and_says_what_was_not_decided(self, results: Path) -> None:
        """Counts go to stdout; rows that nobody could judge are told on stderr."""
        done = run("replay", results, "--policy", "default")
        assert done.exit_code == 0
        assert "3 rows; 0 decisions are not the stored ones" in done.stdout
        assert "Hate" in done.stdout
        assert "CWE-89" in done.stdout
        assert "1 row could not be read" in done.stderr

    def test_replay_as_json(self, results: Path) -> None:
        """Machines read the same counts."""
        done = run("replay", results, "--policy", "monitor", "--json")
        assert json.loads(done.stdout)["schema"] == "guardrail.replay/1"

    def test_diff_names_rows_and_shows_no_message(self, results: Path) -> None:
        """Samples are places and ids that a terminal does not obey; messages stay where they are."""
        done = run("diff", results, "--old", "default", "--new", "monitor")
        assert done.exit_code == 0
        assert "2 of 2 decisions flip, 100.0%" in done.stdout
        assert "log.jsonl:1" in done.stdout
        assert f"{results}:2  id esc␛[31m" in done.stdout
        assert "What is wrong" not in done.stdout

    def test_diff_as_json(self, results: Path) -> None:
        """Machines read the same flips."""
        values = json.loads(
            run("diff", results, "--old", "default", "--new", "monitor", "--samples", "0", "--json").stdout
        )
        assert values["flipped"] == 2
        assert all(flip["samples"] == [] for flip in values["flips"])

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["replay", "nowhere.jsonl", "--policy", "default"], "cannot read nowhere.jsonl"),
            (["replay", "{results}", "--policy", "defualt"], "cannot read policy"),
            (["replay", "{results}", "--policy", "default", "--today", "tomorrow"], "--today: expected a day"),
            (["replay", "{results}", "--policy", "default", "-o", "{results}"], "is one of the results to read"),
        ],
    )
    def test_what_cannot_work_is_bad_usage(self, results: Path, args: list[str], message: str) -> None:
        """The exit code is 2, and the line says what to change."""
        done = run(*(arg.replace("{results}", str(results)) for arg in args))
        assert done.exit_code == 2
        assert message in done.stderr

    def test_no_rows_is_told(self, tmp_path: Path) -> None:
        """An empty file does not look like a file of allowed rows."""
        assert "nothing was decided" in run("replay", stored(tmp_path / "r.jsonl"), "--policy", "default").stderr
