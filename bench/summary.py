"""The summary of a visit to a GPU, for a reader who sees only the end of the output."""

import re
from collections.abc import Iterable, Sequence

from .stages import Ended

LINES, CHARACTERS = 100, 12_000
_WIDTH = 150  # characters of a line
_FAILURES = 50  # lines about failures, so that there is room for numbers
_NAMED = 6  # failures that are named for each stage
_FAILED = re.compile(r"^(?:FAILED|ERROR) (?:tests/)?(\S+?(?:\[.*?\])?)(?: - (.*))?$", re.MULTILINE)
# Lines of benchmarks about a work that was not timed, or about anything else that is wrong.
_WRONG = re.compile(r"^\s*(.*(?:\bwrong\b|\bno time,).*)$", re.MULTILINE | re.IGNORECASE)
_ERROR_LINE = re.compile(r"^E {3,}(\S.*)$", re.MULTILINE)


def reasons(ended: Ended) -> list[str]:
    """Returns why a stage did not pass: the first useful line of each of its failures."""
    if ended.status is None:
        return [ended.output]
    found = [f"{test}: {why or 'no reason given'}" for test, why in _FAILED.findall(ended.output)]
    found = found or _WRONG.findall(ended.output)
    if found:
        more = [f"and {len(found) - _NAMED} more, see log.txt"] if len(found) > _NAMED else []
        return found[:_NAMED] + more
    if found := _ERROR_LINE.search(ended.output):
        return [found[1]]
    return [ended.finding or ended.last_line or "it printed nothing"]


def of_visit(title: str, stages: Sequence[Ended], notes: Iterable[str] = ()) -> str:
    """Returns at most 100 lines: failures with reasons, stages that were not run, then numbers."""
    bad = [one for one in stages if not one.good]
    passed = [one for one in stages if one.outcome == "passed"]
    failures = []
    for one in bad:
        ending = "" if one.status is None else f" after {one.seconds:.0f} s, status {one.status}"
        failures.append(f"{one.outcome}: {one.stage.name}{ending}")
        failures += [f"    {line}" for line in reasons(one)]
    failures += [
        f"{one.outcome}: {one.stage.name}, "
        + (one.output if one.status is None else f"nothing was found in {one.seconds:.0f} s")
        for one in stages if one.good and one.outcome != "passed"
    ]  # fmt: skip
    numbers = []
    for one in stages:
        lines = [line for line in one.output.splitlines() if line.strip()]
        if one.stage.numbers and one.status is not None:
            numbers += [f"-- {one.stage.name}", *lines[-one.stage.numbers :]]
    head = [
        f"== {title}: {len(passed)} of {len(stages)} stages passed, {len(bad)} did not ==",
        *notes,
    ]
    failures = _at_most(failures, _FAILURES, CHARACTERS // 2)
    used = sum(map(_length, [*head, *failures]))
    left = LINES - len(head) - len(failures)
    return "\n".join([*map(_cut, head), *failures, *_at_most(numbers, left, CHARACTERS - used)])


def _at_most(lines: list[str], count: int, characters: int) -> list[str]:
    """Returns the first lines, cut to a width, and a line with the number of the others."""
    kept = []
    for number, line in enumerate(map(_cut, lines)):
        more = f"... {len(lines) - number} more lines, see log.txt"
        last = number == len(lines) - 1
        room = characters - sum(map(_length, kept)) - (0 if last else _length(more))
        if len(kept) + (1 if last else 2) > count or _length(line) > room:
            return [*kept, more]
        kept.append(line)
    return kept


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"


def _length(line: str) -> int:
    """Returns the number of characters of a line with its end."""
    return len(line) + 1
