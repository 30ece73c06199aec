"""The YAML of configuration files: text to plain Python values, and back.

Scalars are those of YAML 1.2's core schema: PyYAML reads 1.1, where 010 is 8, 1:30 is 90, `no` is
false, and 2024-01-01 is a date.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml


class UnsetError(ValueError):
    """A value names a variable of the environment that is not set."""


def parse(text: str) -> Any:  # noqa: ANN401 (any YAML value)
    """Returns the value of a YAML text.

    A key occurs once in its section, whole numbers fit 64 bits, and an alias stands for a scalar:
    so no value holds itself or grows without bound. `${env:NAME}` in a value is a variable of the
    environment; what results is read as if it stood there, so it may be a number.

    Raises:
        UnsetError: there is no such variable.
        ValueError: the text is not such YAML; the message is the reason, in one line.
    """
    try:
        return yaml.load(text, _Loader)
    except UnsetError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except Exception as error:  # a value that does not fit its tag lets almost anything out
        raise ValueError(f"a value cannot be read: {error!r}") from None


def write(tree: Any) -> str:  # noqa: ANN401 (any YAML value)
    """Returns text that `parse` reads as the same value; paths become text, tuples become lists.

    A scalar stays on its line, however long it is.
    """
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=sys.maxsize)


class _Loader(yaml.SafeLoader):
    """Plain values only."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (as PyYAML declares it)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and not isinstance(node, yaml.ScalarNode):
            raise _fault(node, "an alias must stand for a single value; write the section out")
        return node

    def compose_scalar_node(self, anchor: dict[Any, yaml.Node]) -> yaml.ScalarNode:
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        value = _VARIABLE.sub(_variable, node.value)
        if value != node.value and node.style is None:  # in quotes it is text
            node.tag = self.resolve(  # type: ignore[no-untyped-call]
                yaml.ScalarNode, value, (True, False)
            )
        node.value = value
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise _fault(key, f"key {key.value[:60]!r} stands twice; keep one")
            names.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_core(self, node: yaml.ScalarNode) -> object:
        """A value with an explicit tag, such as `!!int 1:30`, must be what the tag says, too."""
        kind = node.tag.rpartition(":")[2]
        if kind not in _CORE or not re.fullmatch(_CORE[kind][0], node.value):
            raise _fault(node, f"{node.value[:60]!r} is no {kind} of YAML 1.2")
        return self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = node.value
        number = int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
        if abs(number) >= 2**63:
            raise _fault(node, "a whole number must be below 2^63")
        return number


_VARIABLE = re.compile(r"(?<!\$)\$\{env:([^}]*)\}")
"""Not behind another dollar sign: in a path, two stand for one."""


def _variable(found: re.Match[str]) -> str:
    name = found[1]
    if name not in os.environ:
        raise UnsetError(f"{found[0]}: the variable {name!r} is not set; set it, or write a value")
    return os.environ[name]


def _fault(node: yaml.Node | None, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark if node else None)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader`, or a reader of YAML 1.1, would take for something else."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Several lines of text stand on one, with escapes."""
    several = any(end in text for end in "\n\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if several else None)


NUMBER = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
"""Numbers with a decimal point or an exponent, or without."""
_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        NUMBER + r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
for _kind, (_pattern, _first) in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first
        )
for _kind in ("int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_core)
_Dumper.add_representer(str, _represent)
_Dumper.add_multi_representer(Path, lambda dumper, path: dumper.represent_str(str(path)))
