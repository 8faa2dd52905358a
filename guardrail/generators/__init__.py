"""Generators: what produces the assistant's answer, behind :class:`guardrail.protocols.Generator`.

================================================  ================================  ====================
``openai_compatible.OpenAIGenerator``             any server of that API            ``guardrail[upstream]``
``transformers.TransformersGenerator``            a Llama 3 in this process         ``guardrail[gpu]``
================================================  ================================  ====================

Importing this package loads neither.
"""

from __future__ import annotations

from guardrail.verdict import Conversation

__all__ = ["chat_messages"]


def chat_messages(conversation: Conversation, feedback: str | None) -> list[dict[str, str]]:
    """Returns a conversation as chat APIs and chat templates take it.

    Args:
        conversation: Ends with the user's message.
        feedback: What was wrong with the attempt before; it goes to the end of the user's message, since many
            templates take a system message at the beginning alone.
    """
    messages = [{"role": message.role.value, "content": message.content} for message in conversation.messages]
    if feedback is not None:
        messages[-1]["content"] += f"\n\n{feedback}"
    return messages
