"""The YAML of configuration files: text to plain Python values, and back."""

import re
from pathlib import Path
from typing import Any

import yaml


def parse(text: str) -> Any:  # noqa: ANN401 (any YAML value)
    """Returns the value of a YAML text.

    1e-3 is a number (YAML 1.1 asks for 1.0e-3), a key occurs once in its section, whole numbers fit
    64 bits, and an alias stands for a scalar: so no value holds itself or grows without bound.

    Raises:
        ValueError: the text is not such YAML; the message is the reason, in one line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except Exception as error:  # a value that does not fit its tag lets almost anything out
        raise ValueError(f"a value cannot be read: {error!r}") from None


def write(tree: Any) -> str:  # noqa: ANN401 (any YAML value)
    """Returns text that `parse` reads as the same value; paths become text, tuples become lists."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Plain values only, read as a user expects."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and not isinstance(node, yaml.ScalarNode):
            raise _fault(node, "an alias must stand for a single value; write the section out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise _fault(key, f"key {key.value[:60]!r} stands twice; keep one")
            names.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = int(super().construct_yaml_int(node))
        if abs(number) >= 2**63:
            raise _fault(node, "a whole number must be below 2^63")
        return number


def _fault(node: yaml.Node | None, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark if node else None)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as a number, and writes paths as text."""


_FLOAT = "tag:yaml.org,2002:float"
_EXPONENT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))
_Dumper.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))
_Dumper.add_multi_representer(Path, lambda dumper, path: dumper.represent_str(str(path)))
