"""The policy: default deny, thresholds, files, hashes."""

from __future__ import annotations

import json
import math
from datetime import date
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import PolicyError
from guardrail.policy import PRESETS, Policy, load_policy, parse_policy, policy_schema
from guardrail.taxonomy import HazardCategory
from guardrail.verdict import Action, Confidence, Finding, Outcome, Rail, Severity, Source, Span, Verdict, unverified

SOURCE = Source("model", "1")
HATE = HazardCategory.HATE


def hazard(
    probability: float | None, scores: dict[HazardCategory, float] | None = None, *named: HazardCategory
) -> Verdict:
    outcome = Outcome.UNSAFE if probability is None or probability >= 0.5 else Outcome.SAFE
    return Verdict(outcome, SOURCE, scores or {}, named, unsafe_probability=probability)


def code(severity: Severity) -> Verdict:
    finding = Finding("python.rule", "CWE-89", severity, Span(0, 3), 1, 1, "python", "Use parameters.")
    return Verdict(Outcome.UNSAFE, SOURCE, findings=(finding,))


def found(confidence: Confidence, severity: Severity = Severity.ERROR) -> Verdict:
    finding = Finding("python.weak-hash", "CWE-327", severity, Span(0, 3), 1, 1, "python", "m", confidence)
    return Verdict(Outcome.UNSAFE, SOURCE, findings=(finding,))


def write(text: str) -> Policy:
    return parse_policy("version: 1\n" + text, origin="p.yaml")


class TestDecide:
    @pytest.mark.parametrize("rail", list(Rail))
    def test_a_policy_that_says_nothing_denies(self, rail: Rail) -> None:
        """Unsafe, unverified and unasked all block when no rule says otherwise."""
        policy = Policy()
        assert policy.decide(rail, []).action is Action.BLOCK
        assert policy.decide(rail, [unverified(SOURCE, "lost")]).action is Action.BLOCK
        assert policy.decide(rail, [hazard(0.9)]).action is Action.BLOCK
        assert policy.decide(rail, [hazard(0.1, {HATE: 0.9})]).action is Action.BLOCK
        assert policy.decide(rail, [hazard(None)]).action is Action.BLOCK
        assert policy.decide(rail, [hazard(0.1)]).action is Action.ALLOW

    def test_unverified_is_never_outweighed_by_safe(self) -> None:
        """One classifier that did not answer is enough, whatever the other says."""
        decision = Policy().decide(Rail.PROMPT, [hazard(0.0), unverified(SOURCE, "lost")])
        assert decision.action is Action.BLOCK
        assert decision.outcome is Outcome.UNVERIFIED

    def test_the_strictest_reason_wins_and_stands_first(self) -> None:
        """Flag, retry and block together are a block."""
        policy = write("rails: {response: {unsafe: {action: flag}, categories: {hate: {action: retry}}}}")
        decision = policy.decide(Rail.RESPONSE, [hazard(0.2, {HATE: 0.7, HazardCategory.PRIVACY: 0.9})])
        assert [r.action for r in decision.reasons] == [Action.RETRY, Action.FLAG]
        assert decision.action is Action.RETRY

    def test_a_named_category_carries_the_probability_of_unsafe(self) -> None:
        """Mass split over labels does not let a text through that the model calls unsafe."""
        decision = Policy().decide(Rail.PROMPT, [hazard(0.9, {HATE: 0.4}, HATE)])
        assert decision.action is Action.BLOCK
        assert decision.reasons[0].subject == "hate"
        assert decision.reasons[0].score == 0.9

    def test_an_allowed_category_explains_the_unsafe_probability(self) -> None:
        """What the operator allows is not blocked through the back door of the overall rule."""
        policy = write("rails: {prompt: {categories: {hate: {action: allow}}}}")
        assert policy.decide(Rail.PROMPT, [hazard(0.9, {HATE: 0.9}, HATE)]).action is Action.ALLOW
        assert policy.decide(Rail.PROMPT, [hazard(0.9, {HATE: 0.9}, HATE, HazardCategory.PRIVACY)]).action is (
            Action.BLOCK
        )

    def test_unsafe_without_a_category_takes_the_overall_rule(self) -> None:
        """A hazard outside the eleven categories is still a hazard."""
        policy = write("rails: {prompt: {unsafe: {action: flag, threshold: 0.6}}}")
        assert policy.decide(Rail.PROMPT, [hazard(0.7)]).action is Action.FLAG
        assert policy.decide(Rail.PROMPT, [hazard(0.55)]).action is Action.ALLOW

    @pytest.mark.parametrize(
        ("rail", "severity", "action"),
        [
            (Rail.PROMPT, Severity.ERROR, Action.ALLOW),
            (Rail.RESPONSE, Severity.INFO, Action.ALLOW),
            (Rail.RESPONSE, Severity.WARNING, Action.FLAG),
            (Rail.RESPONSE, Severity.ERROR, Action.RETRY),
        ],
    )
    def test_findings_count_by_severity_and_rail(self, rail: Rail, severity: Severity, action: Action) -> None:
        """The default preset: a user may paste insecure code, an answer may not hold it."""
        assert load_policy("default").decide(rail, [code(severity)]).action is action

    def test_code_without_rules_has_an_action_of_its_own(self) -> None:
        """It is never safe, and by default it is flagged; a file that does not say takes ``on_unverified``."""
        verdict = Verdict(Outcome.UNVERIFIED, SOURCE, unscanned=("rust",))
        decision = load_policy("default").decide(Rail.RESPONSE, [hazard(0.0), verdict])
        assert (decision.action, decision.outcome) == (Action.FLAG, Outcome.UNVERIFIED)
        assert decision.reasons[0].subject == "code not examined: rust"
        assert write("name: x").decide(Rail.RESPONSE, [verdict]).action is Action.BLOCK

    def test_a_prompt_is_never_retried(self) -> None:
        """``on_unverified: retry`` blocks a prompt: it cannot be generated again."""
        policy = write("on_unverified: retry")
        assert policy.decide(Rail.PROMPT, [unverified(SOURCE, "")]).action is Action.BLOCK
        assert policy.decide(Rail.RESPONSE, [unverified(SOURCE, "")]).action is Action.RETRY

    @given(
        st.lists(
            st.builds(
                hazard,
                st.floats(0, 1),
                st.dictionaries(st.sampled_from(HazardCategory), st.floats(0, 1)),
            ),
            max_size=3,
        ),
        st.sampled_from(Rail),
    )
    def test_more_verdicts_never_make_a_decision_milder(self, verdicts: list[Verdict], rail: Rail) -> None:
        """Adding a classifier can only add reasons."""
        policy = load_policy("default")
        fewer = policy.decide(rail, [hazard(0.0), *verdicts[:-1]])
        more = policy.decide(rail, [hazard(0.0), *verdicts])
        assert more.action.strictness >= fewer.action.strictness

    @given(
        st.builds(
            Verdict,
            st.sampled_from(Outcome),
            st.just(SOURCE),
            st.dictionaries(st.sampled_from(HazardCategory), st.floats(0, 1) | st.sampled_from([0.5, 0, 1, math.nan])),
            st.lists(st.sampled_from(HazardCategory), unique=True, max_size=2).map(tuple),
            st.none() | st.floats(0, 1) | st.sampled_from([0.5, math.nan]),
            unscanned=st.sampled_from([(), ("cobol",)]),
        ),
        st.sampled_from(Rail),
        st.sampled_from(PRESETS),
    )
    def test_a_verdict_that_is_passed_over_gives_no_reason(self, verdict: Verdict, rail: Rail, name: str) -> None:
        """The short way, by the highest score, decides as the rules would one by one."""
        policy = load_policy(name)
        if policy.rails[rail].has_nothing_against(verdict):
            assert not list(policy._reasons(rail, verdict, "", date.today()))


class TestFile:
    @pytest.mark.parametrize("name", PRESETS)
    def test_presets_load_and_fit_the_schema(self, name: str) -> None:
        """Every preset is a policy of its own name, valid under the shipped JSON Schema."""
        assert load_policy(name).name == name
        text = (resources.files("guardrail") / "policies" / f"{name}.yaml").read_text("utf-8")
        jsonschema.validate(yaml.safe_load(text), policy_schema())

    def test_the_shipped_schema_is_current(self) -> None:
        """Editors read the file, guardrail reads the model: both say the same."""
        shipped = (resources.files("guardrail") / "policies" / "policy.schema.json").read_text("utf-8")
        assert json.loads(shipped) == policy_schema()

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("rails:\n  promt: {}\n", "p.yaml:3: rails.promt: unknown key; did you mean 'prompt'?"),
            ("on_unverifed: block\n", "p.yaml:2: on_unverifed: unknown key; did you mean 'on_unverified'?"),
            (
                "rails:\n  prompt:\n    categories:\n      hat: {}\n",
                "p.yaml:5: rails.prompt.categories.hat: unknown hazard category; did you mean 'hate'?",
            ),
            (
                "rails:\n  response:\n    categories:\n      hate:\n        acton: flag\n",
                "p.yaml:6: rails.response.categories.hate.acton: unknown key; did you mean 'action'?",
            ),
            ("on_unverified: alow\n", "p.yaml:2: on_unverified: input should be"),
            ("max_attempts: 0\n", "p.yaml:2: max_attempts: "),
            ("max_attempts: 1\nmax_attempts: 2\n", "p.yaml:3: 'max_attempts' is given twice"),
            (
                "rails:\n  prompt:\n    unsafe: {action: retry}\n",
                "p.yaml:4: rails.prompt.unsafe.action: a prompt cannot be retried",
            ),
            ("rails: {prompt: {unsafe: {threshold: 0}}}\n", "rails.prompt.unsafe.threshold"),
            ("on_unverified: flag\non_unscanned_code: block\n", "p.yaml:3: on_unscanned_code: may not be stricter"),
            ("rails: [", "not readable as YAML"),
            ("? [a]\n: 1\n", "p.yaml:2"),
        ],
    )
    def test_a_mistake_is_named_with_its_line_and_the_nearest_key(self, text: str, expected: str) -> None:
        """A typo never silently means the default."""
        with pytest.raises(PolicyError) as caught:
            write(text)
        assert expected in str(caught.value)

    @pytest.mark.parametrize("text", ["", "- a\n", "version: 2\n", "name: x\n", "42"])
    def test_what_is_not_a_version_1_policy_is_refused(self, text: str) -> None:
        """No version, another version or another shape: an error, never a guess."""
        with pytest.raises(PolicyError, match=r"version|mapping"):
            parse_policy(text, origin="p.yaml")

    def test_a_missing_file_names_the_presets(self, tmp_path: Path) -> None:
        """The error says what could have been meant."""
        with pytest.raises(PolicyError, match="strict, default, monitor"):
            load_policy(tmp_path / "none.yaml")

    def test_a_file_that_is_not_utf8_is_refused(self, tmp_path: Path) -> None:
        """Bytes that cannot be read are not skipped."""
        path = tmp_path / "p.yaml"
        path.write_bytes(b"version: 1\nname: \xff\n")
        with pytest.raises(PolicyError, match="not UTF-8 at byte 17"):
            load_policy(path)

    def test_categories_take_what_they_leave_out_from_unsafe(self) -> None:
        """A rule with an action alone keeps the rail's threshold, and the other way round."""
        policy = write(
            "rails: {prompt: {unsafe: {action: flag, threshold: 0.7},"
            " categories: {hate: {action: block}, privacy: {threshold: 0.2}}}}"
        )
        rail = policy.rails[Rail.PROMPT]
        assert (rail.rule(HATE).action, rail.rule(HATE).threshold) == (Action.BLOCK, 0.7)
        assert (rail.rule(HazardCategory.PRIVACY).action, rail.rule(HazardCategory.PRIVACY).threshold) == (
            Action.FLAG,
            0.2,
        )


class TestHash:
    def test_the_hash_follows_the_content_alone(self) -> None:
        """Comments and order do not change it; any value does."""
        one = write("name: x\nmax_attempts: 2\n")
        assert one.hash == write("# why\nmax_attempts: 2\nname: x\n").hash
        assert one.hash != write("name: x\nmax_attempts: 3\n").hash
        assert one.hash != one.with_max_attempts(5).hash
        assert one.hash != write("name: x\nmax_attempts: 2\nrails: {prompt: {unsafe: {threshold: 0.4}}}\n").hash


class TestTreatment:
    def test_confidence_can_soften_a_severity(self) -> None:
        """A severity has one action, or one for each confidence."""
        policy = write("rails: {response: {findings: {error: {low: flag, medium: retry, high: block}, warning: flag}}}")
        actions = [policy.decide(Rail.RESPONSE, [found(confidence)]).action for confidence in Confidence]
        assert actions == [Action.FLAG, Action.RETRY, Action.BLOCK]
        assert policy.decide(Rail.RESPONSE, [found(Confidence.LOW, Severity.WARNING)]).action is Action.FLAG

    def test_a_confidence_left_out_takes_the_strictest(self) -> None:
        """What a file does not say is not let through."""
        policy = write("rails: {response: {findings: {error: {low: flag, medium: retry}}}}")
        assert policy.decide(Rail.RESPONSE, [found(Confidence.HIGH)]).action is Action.RETRY

    def test_a_retry_of_a_prompt_is_refused_by_confidence_too(self) -> None:
        """A prompt cannot be generated again."""
        with pytest.raises(PolicyError, match="cannot be retried"):
            write("rails: {prompt: {findings: {error: {low: retry}}}}")


class TestSuppressions:
    @pytest.mark.parametrize(
        "entry",
        [
            "{rule: python.weak-hash}",
            "{rule: 'python.*', reason: checksums}",
            "{cwe: CWE-327}",
            "{cwe: CWE-327, path: 'tests/*'}",
            "{rule: python.weak-hash, until: 2030-01-31}",
        ],
    )
    def test_an_accepted_finding_asks_for_nothing_and_stays_visible(self, entry: str) -> None:
        """By rule, by weakness, by path, up to and on its last day; the finding and the reason are still there."""
        policy = write(f"suppressions: [{entry}]")
        decision = policy.decide(Rail.RESPONSE, [found(Confidence.HIGH)], path="tests/a.py", today=date(2030, 1, 31))
        assert decision.action is Action.ALLOW
        assert decision.findings
        assert decision.reasons[0].subject == "CWE-327 python.weak-hash (suppressed)"

    @pytest.mark.parametrize(
        "entry",
        [
            "{rule: python.weak-cipher}",
            "{rule: python.weak-hash, cwe: CWE-1}",
            "{cwe: CWE-327, path: 'tests/*'}",
            "{cwe: CWE-327, until: 2030-01-30}",
        ],
    )
    def test_what_does_not_fit_or_has_ended_still_blocks(self, entry: str) -> None:
        """All that is given has to fit."""
        policy = write(f"suppressions: [{entry}]")
        decision = policy.decide(Rail.RESPONSE, [found(Confidence.HIGH)], path="src/a.py", today=date(2030, 1, 31))
        assert decision.action is Action.BLOCK

    def test_a_hazard_is_not_suppressed(self) -> None:
        """Suppressions are for findings in code."""
        assert write("suppressions: [{rule: '*'}]").decide(Rail.RESPONSE, [hazard(0.9)]).action is Action.BLOCK

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ("{path: 'a'}", "give a rule or a cwe"),
            ("{rul: x}", "did you mean 'rule'"),
            ("{cwe: 327}", "p.yaml:2"),
            ("{rule: x, until: soon}", "p.yaml:2"),
        ],
    )
    def test_a_mistake_is_named_with_its_line(self, entry: str, message: str) -> None:
        """As everywhere in a policy."""
        with pytest.raises(PolicyError, match=message):
            write(f"suppressions: [{entry}]")

    def test_is_part_of_the_hash(self) -> None:
        """Two policies that decide otherwise have other hashes."""
        one, other = (write(f"suppressions: [{{rule: x, until: 2030-01-{day}}}]") for day in (30, 31))
        assert one.hash != other.hash
