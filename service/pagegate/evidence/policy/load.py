"""Reads a policy file. Every error says file, line and key; unknown and repeated keys are errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

import yaml
from pydantic import ValidationError

from pagegate.errors import PolicyError
from pagegate.evidence.policy.model import Policy

MAX_POLICY_BYTES: Final = 1024 * 1024
_MAX_DEPTH: Final = 12
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,18}|0x[0-9a-fA-F]{1,16})")
_WORDS: Final[Mapping[str, object]] = {"true": True, "false": False, "null": None, "~": None, "": None}
_Path = tuple[str | int, ...]


def load_policy(path: Path | str) -> Policy:
    """Reads and checks a policy file. Raises PolicyError POLICY_UNREADABLE or POLICY_INVALID."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise PolicyError("POLICY_UNREADABLE", f"cannot read policy {path}: {error.strerror}") from error
    return parse_policy(data, name=str(path))


def parse_policy(data: bytes, *, name: str = "policy") -> Policy:
    """Checks the text of a policy; `name` is how errors call it. Raises PolicyError POLICY_INVALID."""
    if len(data) > MAX_POLICY_BYTES:
        raise _invalid(f"{name}: more than {MAX_POLICY_BYTES} bytes")
    lines: dict[_Path, int] = {}
    document = _read_yaml(data, name, lines)
    try:
        policy = Policy.model_validate(document)
    except ValidationError as error:
        raise _invalid("\n".join(_describe(dict(one), name, lines) for one in _causes(error))) from None
    object.__setattr__(policy, "_digest", sha256(data).hexdigest())
    return policy


def _invalid(message: str) -> PolicyError:
    return PolicyError("POLICY_INVALID", message)


def _read_yaml(data: bytes, name: str, lines: dict[_Path, int]) -> object:
    try:
        text = data.decode("utf-8")
        node = yaml.compose(_refuse_aliases(text, name), Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise _invalid(f"{name}: not UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _invalid(f"{name}:{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise _invalid(f"{name}: not YAML: {error or 'nested too deep'}") from None
    if node is None:
        raise _invalid(f"{name}: empty; a policy needs at least version and identities")
    return _value(node, (), name, lines)


def _refuse_aliases(text: str, name: str) -> str:
    """Aliases would let one line stand for many, and nesting without end exhaust the stack."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _invalid(f"{name}:{_line(event)}: aliases (*name) are not supported")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise _invalid(f"{name}:{_line(event)}: nested deeper than {_MAX_DEPTH}")
    return text


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 1


def _value(node: yaml.Node, path: _Path, name: str, lines: dict[_Path, int]) -> object:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, index), name, lines) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, name, lines)
    return _scalar(node)


def _mapping(node: yaml.MappingNode, path: _Path, name: str, lines: dict[_Path, int]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise _invalid(f"{name}:{line}: a key must be plain text")
        key = str(key_node.value)
        if key in found:
            raise _invalid(f"{name}:{line}: {_dotted((*path, key))} is given twice")
        lines[(*path, key)] = line
        found[key] = _value(value_node, (*path, key), name, lines)
    return found


def _scalar(node: yaml.Node) -> object:
    """Plain words and integers by the rules of YAML 1.2; a long number stays text, so hex digests keep their zeros."""
    text = str(node.value)
    if isinstance(node, yaml.ScalarNode) and node.style is None:
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            return int(text, 0)
    return text


def _causes(error: ValidationError) -> list[Mapping[str, object]]:
    """The errors without those that only say that a list is too short because its items are wrong."""
    errors: list[Mapping[str, object]] = [dict(one) for one in error.errors()]
    places = [str(one["loc"])[:-1].rstrip(",") + "," for one in errors]
    return [
        one
        for one, place in zip(errors, places, strict=True)
        if one["type"] != "too_short" or not any(other != place and other.startswith(place) for other in places)
    ]


def _describe(error: Mapping[str, object], name: str, lines: Mapping[_Path, int]) -> str:
    location = error["loc"]
    path: _Path = location if isinstance(location, tuple) else ()
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "unknown key; see `pagegate policy schema` for those there are"
    elif error["type"] == "missing":
        message = "is missing"
    near = path
    while near and near not in lines:
        near = near[:-1]
    shown = _dotted(tuple(part for part in path if part != "[key]"))
    return f"{name}:{lines.get(near, 1)}: {shown + ': ' if shown else ''}{message}"


def _dotted(path: _Path) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
