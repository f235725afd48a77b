"""The tables."""

from programme.work import Row


def chapter(name: str, parts: dict[str, Row]) -> list[str]:
    import json

    return [json.dumps(parts, indent=1)]


def write() -> None: ...
