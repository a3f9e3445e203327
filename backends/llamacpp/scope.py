"""What a worker is told about who asks, so that prompts begin where an earlier one left off without telling anybody of others."""

from dataclasses import replace

from backends.base import Call

SCOPE_HEADER = "x-chasqui-scope"
"""Prompts of the same scope may begin where others left cells."""
PUBLIC_HEADER = "x-chasqui-public"
"""`messages,characters`: so many messages, and so much of the next one, are known to everybody."""


def scoped(call: Call, sharing: str) -> Call:
    """
    Args:
        sharing: key, role or all.
    """
    scope = {"key": f"key:{call.caller}", "role": f"role:{call.role}"}.get(sharing, "all")
    public = {PUBLIC_HEADER: "{},{}".format(*call.public)} if any(call.public) else {}
    return replace(call, headers={**call.headers, SCOPE_HEADER: scope, **public})
