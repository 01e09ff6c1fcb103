"""Every error the agent raises on purpose answers one question: retry, wait, or tell the user?

VtapError
├── Retry      the world moved or hiccuped; the next pass may succeed        (OVSDB reconnecting, link vanished)
├── Wait       nothing to do until something else changes                    (no route yet, vswitchd down)
└── TellUser   a person has to change something; the message says what       (bad file, unsupported kernel)
"""

from __future__ import annotations


class VtapError(Exception):
    """`str()` is one sentence that a user can act on."""


class Retry(VtapError):
    """Try again soon."""


class Wait(VtapError):
    """Try again when an event arrives or at the next resync."""


class TellUser(VtapError):
    """Never retried by itself."""
