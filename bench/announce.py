"""Tells others about a night of the gate: the summary of a job, and a webhook.

Neither can fail the gate.
"""

import http.client
import json
import os
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import click

from ..diffusion.errors import UserError

_SECONDS = 10.0


def add_to_job_summary(text: str) -> None:
    """Adds text to the file that GitHub shows beside a job, if there is one."""
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return
    try:
        with Path(name).open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        click.echo(f"the job summary cannot be written: {error.strerror}", err=True)


def checked_url(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    """Returns the address of a webhook, or None for an empty one.

    Raises:
        ValueError: it is no address of the web.
    """
    if not url:
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(character.isspace() or ord(character) > 126 for character in url):
        raise UserError("--webhook must be an address like https://example.org/hook")
    return url


def post(url: str, content: dict) -> None:
    """Sends JSON to a webhook; says in one line if that is impossible.

    The line does not hold the address, which may be a secret.
    """
    request = urllib.request.Request(
        url,
        json.dumps(content, allow_nan=False).encode(),
        {"Content-Type": "application/json", "User-Agent": "flashpoint"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):
            pass
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        click.echo(f"the webhook was not told: {reason}".splitlines()[0], err=True)
