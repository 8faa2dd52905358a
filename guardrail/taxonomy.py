"""The eleven hazard categories, and the codes that guard models write for them.

A category has a stable name (``hate``), used in policies, logs and on the wire. Its *code* (``S9``) belongs to one
guard model's prompt and exists only at that model's edge: Llama Guard 3 gives most of the same codes other meanings,
so a code is always read through the table of its version.

Sources: MLCommons AI Safety taxonomy v0.5 (arXiv 2404.12241); PurpleLlama ``Llama-Guard2/MODEL_CARD.md`` and
``Llama-Guard3/8B/MODEL_CARD.md``. The descriptions are our own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

__all__ = ["LLAMA_GUARD_2", "LLAMA_GUARD_3", "CodeTable", "GuardVersion", "HazardCategory", "code_table"]


class HazardCategory(str, Enum):
    """One of the eleven hazards of the MLCommons taxonomy v0.5; the value is its stable name."""

    VIOLENT_CRIMES = "violent_crimes"
    NON_VIOLENT_CRIMES = "non_violent_crimes"
    SEX_RELATED_CRIMES = "sex_related_crimes"
    CHILD_SEXUAL_EXPLOITATION = "child_sexual_exploitation"
    SPECIALIZED_ADVICE = "specialized_advice"
    PRIVACY = "privacy"
    INTELLECTUAL_PROPERTY = "intellectual_property"
    INDISCRIMINATE_WEAPONS = "indiscriminate_weapons"
    HATE = "hate"
    SUICIDE_SELF_HARM = "suicide_self_harm"
    SEXUAL_CONTENT = "sexual_content"

    @property
    def title(self) -> str:  # type: ignore[override]  # str.title is of no use on a category
        """The category's name for people, e.g. ``"Suicide & Self-Harm"``."""
        return _TITLES[self]

    @property
    def description(self) -> str:
        """One sentence saying what belongs to the category."""
        return _DESCRIPTIONS[self]


_TITLES: Mapping[HazardCategory, str] = MappingProxyType(
    {
        HazardCategory.VIOLENT_CRIMES: "Violent Crimes",
        HazardCategory.NON_VIOLENT_CRIMES: "Non-Violent Crimes",
        HazardCategory.SEX_RELATED_CRIMES: "Sex-Related Crimes",
        HazardCategory.CHILD_SEXUAL_EXPLOITATION: "Child Sexual Exploitation",
        HazardCategory.SPECIALIZED_ADVICE: "Specialized Advice",
        HazardCategory.PRIVACY: "Privacy",
        HazardCategory.INTELLECTUAL_PROPERTY: "Intellectual Property",
        HazardCategory.INDISCRIMINATE_WEAPONS: "Indiscriminate Weapons",
        HazardCategory.HATE: "Hate",
        HazardCategory.SUICIDE_SELF_HARM: "Suicide & Self-Harm",
        HazardCategory.SEXUAL_CONTENT: "Sexual Content",
    }
)

_DESCRIPTIONS: Mapping[HazardCategory, str] = MappingProxyType(
    {
        HazardCategory.VIOLENT_CRIMES: "Helps, plans or praises violence against people or animals.",
        HazardCategory.NON_VIOLENT_CRIMES: "Helps with fraud, theft, drugs, trafficking, hacking and the like.",
        HazardCategory.SEX_RELATED_CRIMES: "Helps with or praises sexual assault, harassment or trafficking.",
        HazardCategory.CHILD_SEXUAL_EXPLOITATION: "Enables, depicts or praises the sexual abuse of children.",
        HazardCategory.SPECIALIZED_ADVICE: "Advice that a professional should give, or a danger called safe.",
        HazardCategory.PRIVACY: "Exposes or helps to obtain personal, non-public information about a person.",
        HazardCategory.INTELLECTUAL_PROPERTY: "Helps to violate somebody's copyright, trademark or patent.",
        HazardCategory.INDISCRIMINATE_WEAPONS: "Helps to make or use weapons of mass harm.",
        HazardCategory.HATE: "Demeans or dehumanises people for a protected characteristic.",
        HazardCategory.SUICIDE_SELF_HARM: "Encourages or enables suicide, self-injury or disordered eating.",
        HazardCategory.SEXUAL_CONTENT: "Erotic content.",
    }
)


class GuardVersion(str, Enum):
    """A guard model family whose codes have one meaning."""

    LLAMA_GUARD_2 = "llama-guard-2"
    LLAMA_GUARD_3 = "llama-guard-3"


CodeTable = Mapping[str, "HazardCategory | None"]
"""Code -> category; ``None`` where the model's category is outside the eleven, which still means unsafe."""

LLAMA_GUARD_2: CodeTable = MappingProxyType(
    {f"S{number}": category for number, category in enumerate(HazardCategory, start=1)}
)

LLAMA_GUARD_3: CodeTable = MappingProxyType(
    {
        "S1": HazardCategory.VIOLENT_CRIMES,
        "S2": HazardCategory.NON_VIOLENT_CRIMES,
        "S3": HazardCategory.SEX_RELATED_CRIMES,
        "S4": HazardCategory.CHILD_SEXUAL_EXPLOITATION,
        "S5": None,  # Defamation
        "S6": HazardCategory.SPECIALIZED_ADVICE,
        "S7": HazardCategory.PRIVACY,
        "S8": HazardCategory.INTELLECTUAL_PROPERTY,
        "S9": HazardCategory.INDISCRIMINATE_WEAPONS,
        "S10": HazardCategory.HATE,
        "S11": HazardCategory.SUICIDE_SELF_HARM,
        "S12": HazardCategory.SEXUAL_CONTENT,
        "S13": None,  # Elections
        "S14": None,  # Code Interpreter Abuse
    }
)

_TABLES: Mapping[GuardVersion, CodeTable] = MappingProxyType(
    {GuardVersion.LLAMA_GUARD_2: LLAMA_GUARD_2, GuardVersion.LLAMA_GUARD_3: LLAMA_GUARD_3}
)


def code_table(version: GuardVersion) -> CodeTable:
    """Returns the codes that guard models of one version write, in the order of their prompt."""
    return _TABLES[version]
