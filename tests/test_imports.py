"""The architecture, enforced: who may import whom, and how long things may be.

The package is a house: `FLOORS` lists its rooms from the ground up, and a file imports only from
rooms further down, or from its own. So nothing points up, and no circle can be. Rooms of one floor
do not know each other.
"""

import ast
from collections import Counter
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

PACKAGE = Path(__file__).parent.parent / "pipeline_local"

FLOORS = (
    ("errors", "moved", "seeds", "layout", "atomic", "process", "side_effects"),
    ("config", "console", "user_input"),
    ("commandline",),
    ("engines", "text", "gpus"),
    ("learning", "models", "data"),
    ("given", "blueprint"),
    ("ranks",),
    ("configfile",),
    ("watch",),
    ("record",),
    ("loggers",),
    ("pipeline",),
    ("memory",),
    ("placement",),
    ("training", "finished"),
    ("fitting",),
    ("simulation",),
    ("planning",),
    ("bench", "doctor", "report"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""Folders and files of the package, from the ground up."""
ALONE = {"__init__"}
"""It may import everything, and only what is not the package's own business asks it for a name."""

MATHEMATICS = {"learning", "models", "data"}

HEAVY = {
    *("deepspeed", "transformers", "tokenizers", "tensorboard", "wandb", "mlflow", "shtab"),
    *("onnx", "onnxruntime", "onnxscript", "plotly", "jinja2"),
}
"""Libraries that take seconds to import, or may not be installed."""

LARGEST_FOLDER = 0.15
"""Part of the package's lines."""

MAX_FUNCTION_LINES = 60
MEDIAN_FUNCTION_LINES = 10
MAX_FILE_LINES = 400

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source:
    """One file of the package."""

    def __init__(self, package: Path, path: Path) -> None:
        self.name = path.relative_to(package.parent).as_posix()
        self.part = path.relative_to(package).parts[0].removesuffix(".py")
        self.folder = (package.name, *path.relative_to(package).parts[:-1])
        self.module = ".".join([*self.folder, path.stem]).removesuffix(".__init__")
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)

    def imports(self, tree: ast.AST | None = None) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of everything imported, at any depth."""
        for node in ast.walk(tree or self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self.folder[: len(self.folder) + 1 - node.level] if node.level else ()
                module = ".".join([*base, *filter(None, [node.module])])
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)

    def uses(self, known: Collection[str]) -> set[str]:
        """The files of the package that this one imports."""
        names = [name for _, name in self.imports()]
        found = {name if name in known else name.rpartition(".")[0] for name in names}
        return {name for name in found & set(known) if "." in name}  # not the public face

    def functions(self) -> Iterator[Function]:
        """All functions and methods."""
        yield from (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def public(self) -> Iterator[ast.ClassDef | Function]:
        """All public classes and functions of the file."""
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
                yield node


def sources(package: Path) -> list[Source]:
    return [Source(package, path) for path in sorted(package.rglob("*.py"))]


def lines(node: Function) -> int:
    """Without the docstring: what arguments mean is no story of its own."""
    first = node.body[0]
    is_text = ast.get_docstring(node, clean=False) is not None
    text = (first.end_lineno or first.lineno) - first.lineno + 1 if is_text else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - text


# -- the rules: each gives its problems, one line each -----------------------------------------


def wrong_direction(package: Path) -> Iterator[str]:
    """What points up, or to the side."""
    floor = {part: number for number, parts in enumerate(FLOORS) for part in parts}
    for source in sources(package):
        if source.part in ALONE:
            continue
        if source.part not in floor:
            yield f"{source.name}: {source.part!r} has no place yet; give it one in FLOORS"
            continue
        for line, name in source.imports():
            root, _, rest = name.partition(".")
            used = rest.split(".")[0]
            if root != package.name or used not in floor or used == source.part:
                continue  # another package, a name of __init__, or the same folder
            if floor[used] >= floor[source.part]:
                yield f"{source.name}:{line}: {source.part} must not import {used}"


def circles(package: Path) -> Iterator[str]:
    """Files that import each other, directly or by way of others, at any depth of the code."""
    found = sources(package)
    known = {source.module: source for source in found}
    graph = {source.module: source.uses(known) for source in found}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"{known[error.args[1][0]].name}: a circle: {' -> '.join(error.args[1])}"


def large_folders(package: Path) -> Iterator[str]:
    """A folder that holds more than its share of the package is a drawer."""
    lines: Counter[str] = Counter()
    for source in sources(package):
        lines[source.part] += source.text.count("\n")
    for part, count in lines.items():
        if (package / part).is_dir() and count > max(500, LARGEST_FOLDER * lines.total()):
            yield f"{package.name}/{part} has {count} of {lines.total()} lines; split it"


def processes_in_the_mathematics(package: Path) -> Iterator[str]:
    for source in sources(package):
        if source.part not in MATHEMATICS:
            continue
        used = [line for line, name in source.imports() if name.startswith("torch.distributed")]
        used += [
            node.lineno
            for node in ast.walk(source.tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed"
        ]
        for line in used:
            yield f"{source.name}:{line}: {source.part} knows no process: no torch.distributed"


def heavy_at_import_time(package: Path) -> Iterator[str]:
    for source in sources(package):
        inside = {id(node) for f in source.functions() for node in ast.walk(f)}
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Import | ast.ImportFrom) or id(node) in inside:
                continue
            for _, name in source.imports(node):
                if name.split(".")[0] in HEAVY:
                    yield f"{source.name}:{node.lineno}: import {name} inside the function using it"


def roles_in_the_step_loop(package: Path) -> Iterator[str]:
    for source in sources(package):
        if source.name != f"{package.name}/pipeline/stage.py":
            continue
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.If | ast.IfExp | ast.While):
                continue
            names = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
            names |= {n.attr for n in ast.walk(node.test) if isinstance(n, ast.Attribute)}
            if wrong := names & {"rank", "local_rank", "logger", "log"}:
                yield f"{source.name}:{node.lineno}: the step loop must not ask for {wrong.pop()}"


def long_functions(package: Path) -> Iterator[str]:
    for source in sources(package):
        for function in source.functions():
            if lines(function) > MAX_FUNCTION_LINES:
                rank_info = f"{source.name}:{function.lineno}"
                yield f"{rank_info}: {function.name} has {lines(function)} lines; split it"


def median_function_lines(package: Path) -> float:
    return median(lines(f) for source in sources(package) for f in source.functions())


def long_files(package: Path) -> Iterator[str]:
    for source in sources(package):
        if (count := source.text.count("\n")) > MAX_FILE_LINES:
            yield f"{source.name} has {count} lines; split it by nouns"


def undocumented(package: Path) -> Iterator[str]:
    for source in sources(package):
        for node in source.public():
            if not ast.get_docstring(node):
                yield f"{source.name}:{node.lineno}: {node.name} is public and has no docstring"


def code_in_data(package: Path) -> Iterator[str]:
    """What a user's files hold is data, never code; a model of his own is imported by its name."""
    for source in sources(package):
        for node in ast.walk(source.tree):
            name = _dotted(node)
            if source.name == f"{package.name}/{CALLER}" and name.startswith("cloudpickle."):
                continue
            if name in NEVER or (name.startswith(PICKLES) and name != "pickle.UnpicklingError"):
                yield f"{source.name}:{node.lineno}: {name} may run what a file holds"
            own = {f"{package.name}/{name}" for name in (IMPORTER, "__init__.py", "moved.py")}
            if name.endswith("import_module") and source.name not in own:
                yield f"{source.name}:{node.lineno}: only {IMPORTER} imports what a user names"
            if isinstance(node, ast.Call) and (lacks := _unsafe_argument(node)):
                yield f"{source.name}:{node.lineno}: {ast.unparse(node.func)} needs {lacks}"
            if isinstance(node, ast.ImportFrom) and node.module in UNSAFE_MODULES:
                yield f"{source.name}:{node.lineno}: import {node.module} whole, to be seen in use"


def _dotted(node: ast.AST) -> str:
    """The attribute that is used, or the builtin that is called; else nothing."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id
    return ast.unparse(node) if isinstance(node, ast.Attribute) else ""


NEVER = {"eval", "exec", "compile", "__import__", "yaml.unsafe_load", "yaml.full_load"}
NEVER |= {"yaml.UnsafeLoader", "yaml.FullLoader", "yaml.Loader"}
UNSAFE_MODULES = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "yaml")
PICKLES = tuple(f"{name}." for name in UNSAFE_MODULES[:-1])
IMPORTER = "user_input/user_code.py"
CALLER = "process/by_value.py"
"""It reads what the same program has written a moment ago, in a folder that is its own."""


def _unsafe_argument(call: ast.Call) -> str:
    """What a call that reads a file lacks to be safe; empty if nothing."""
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    match ast.unparse(call.func):
        case "torch.load" if given.get("weights_only") != "True":
            return "weights_only=True"
        case "np.load" | "numpy.load" if given.get("allow_pickle", "False") != "False":
            return "allow_pickle=False"
        case "yaml.load" if [ast.unparse(word) for word in call.args[1:]] != ["_Loader"]:
            return "the package's own _Loader, a SafeLoader"
    return ""


# -- the package -------------------------------------------------------------------------------

RULES = [
    wrong_direction,
    circles,
    large_folders,
    processes_in_the_mathematics,
    heavy_at_import_time,
    roles_in_the_step_loop,
    long_functions,
    long_files,
    undocumented,
    code_in_data,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule) -> None:
    problems = list(rule(PACKAGE))
    assert not problems, "\n".join(["", *problems])


def test_functions_are_short() -> None:
    got = median_function_lines(PACKAGE)
    assert got < MEDIAN_FUNCTION_LINES, f"the median function has {got} lines"


def test_the_package_is_found() -> None:
    assert {"learning", "pipeline", "cli"} <= {source.part for source in sources(PACKAGE)}


# -- the checks themselves: each catches a planted violation -----------------------------------

TALL = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (wrong_direction, "learning/a.py", "from pipeline_local.pipeline import stage"),
        (wrong_direction, "learning/a.py", "from ..pipeline import stage"),
        (wrong_direction, "models/a.py", "import pipeline_local.data.sampler"),
        (wrong_direction, "pipeline/a.py", "def f():\n    from pipeline_local import training"),
        (wrong_direction, "training/trainer.py", "from pipeline_local.planning.plan import Plan"),
        (wrong_direction, "record/a.py", "from pipeline_local.pipeline.stage import Stage"),
        (wrong_direction, "config.py", "from pipeline_local import learning"),
        (wrong_direction, "planning/a.py", "from pipeline_local import cli"),
        (wrong_direction, "newcomer.py", ""),
        (circles, "learning/a.py", "def f():\n    from pipeline_local.learning import a"),
        (large_folders, "learning/a.py", "x = 1\n" * 501),
        (processes_in_the_mathematics, "learning/a.py", "import torch.distributed as dist"),
        (processes_in_the_mathematics, "learning/a.py", "from torch import distributed"),
        (processes_in_the_mathematics, "models/a.py", "torch.distributed.barrier()"),
        (heavy_at_import_time, "training/trainer.py", "import deepspeed"),
        (heavy_at_import_time, "models/a.py", "from transformers import CONFIG_MAPPING"),
        (
            heavy_at_import_time,
            "learning/a.py",
            "try:\n    from deepspeed import x\nfinally: 1",
        ),
        (roles_in_the_step_loop, "pipeline/stage.py", "if self.rank == 0: 1"),
        (roles_in_the_step_loop, "pipeline/stage.py", "x = 1 if logger else 2"),
        (long_functions, "cli.py", TALL),
        (long_files, "cli.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
        (undocumented, "cli.py", "class A: 1"),
        (undocumented, "cli.py", "async def f(): 1"),
        (code_in_data, "cli.py", "x = eval('1')"),
        (code_in_data, "cli.py", "exec(open('x').read())"),
        (code_in_data, "cli.py", "import pickle\nx = pickle.load(f)"),
        (code_in_data, "cli.py", "from pickle import loads"),
        (code_in_data, "cli.py", "x = torch.load(f)"),
        (code_in_data, "cli.py", "x = torch.load(f, weights_only=False)"),
        (code_in_data, "cli.py", "x = np.load(f, allow_pickle=True)"),
        (code_in_data, "cli.py", "x = yaml.load(f, yaml.BaseLoader)"),
        (code_in_data, "cli.py", "x = yaml.load(f, Loader=_Loader)"),
        (code_in_data, "cli.py", "x = importlib.import_module(name)"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, rule, path: str, text: str) -> None:
    planted = tmp_path / "pipeline_local" / path
    planted.parent.mkdir(parents=True)
    planted.write_text(text)
    (problem,) = rule(tmp_path / "pipeline_local")
    assert problem.startswith(f"pipeline_local/{path if rule != large_folders else 'learning'}")


def test_a_circle_of_three_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline_local" / "learning"
    folder.mkdir(parents=True)
    for name, other in zip("abc", "bca", strict=True):
        (folder / f"{name}.py").write_text(f"from pipeline_local.learning.{other} import x")
    (problem,) = circles(tmp_path / "pipeline_local")
    assert problem.count("->") == 3


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pipeline/a.py", "from pipeline_local.learning.module import LocalModule"),
        ("pipeline/stage.py", "import torch.distributed\nif self.is_last: rank = 0"),
        ("learning/a.py", "from pipeline_local import __version__\nfrom . import heads"),
        ("learning/a.py", "import torch\nimport pipeline_local_extras"),
        ("user_input/user_code.py", "x = importlib.import_module(name)"),
        ("cli.py", "import pickle\nx = torch.load(f, weights_only=True), pickle.UnpicklingError"),
        ("cli.py", "block.module.eval(), module.compile(), re.compile('x')"),
        ("commands.py", "def _f():\n    import deepspeed\nfrom pipeline_local.bench import run"),
    ],
)
def test_what_is_allowed_is_not_told(tmp_path: Path, path: str, text: str) -> None:
    file = tmp_path / "pipeline_local" / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert [problem for rule in RULES for problem in rule(tmp_path / "pipeline_local")] == []


def test_the_median_is_taken_over_all_functions(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(TALL + "def g():\n    1\n")
    assert median_function_lines(tmp_path) == (MAX_FUNCTION_LINES + 1 + 2) / 2
