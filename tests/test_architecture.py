"""The walls of the house, held by reading the source: who may import whom, what is banned, how big things may grow."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = (
    "tgi_local",
    "tgi_local.types",
    "tgi_local.constraints",
    "tgi_local.conversation",
    "tgi_local.model_info",
    "tgi_local.errors",
)  # "tgi_local" alone is the version, never its modules
HEAVY = frozenset({"torch", "transformers", "bitsandbytes", "accelerate", "safetensors", "triton", "numpy"})
WEB = frozenset({"fastapi", "starlette", "uvicorn", "gradio", "gradio_client"})


@dataclass(frozen=True)
class Row:
    """What one part of the house may import beyond itself and the standard library."""

    owner: str
    own: tuple[str, ...]
    third_party: frozenset[str] | None = None  # None: any declared dependency that is not `banned`
    banned: frozenset[str] = frozenset()  # standard library modules too


def row(owner: str, *own: str, only: str | None = None, never: frozenset[str] = frozenset()) -> Row:
    return Row(owner, own, None if only is None else frozenset(only.split()), never)


def parts(names: str) -> tuple[str, ...]:
    return tuple(f"tgi_local.{name}" for name in names.split())


# The longest owner that fits a module rules it. A new part of the house gets a row here, and a line in docs/architecture.md.
CONTRACT = (
    row("app", "tgi_local", "tgi_local.*", "ui"),
    row("tgi_local.assembly", *VOCABULARY, *parts("settings service text engine model"), never=WEB),
    row(
        "ui", "tgi_local", only="gradio gradio_client huggingface_hub httpx httpx2"
    ),  # a client of the HTTP API, no more
    row("ui.desktop", only="webview"),
    row("ui.mount", "tgi_local", "ui", only="gradio fastapi"),  # where the page is given its place on the port
    row("tgi_local", *VOCABULARY, "tgi_local.settings", "tgi_local.paths", "tgi_local.logs", never=HEAVY | WEB),
    row("tgi_local.commands", *VOCABULARY, *parts("api.openapi bench.command"), only=""),
    row("tgi_local.bench", *VOCABULARY, only="h11 orjson"),  # a client of any server, and light beside it
    row("tgi_local.bench.measures", only=""),  # drivers in other environments import it alone
    row("tgi_local.types", "tgi_local.constraints", only=""),
    row("tgi_local.constraints", only=""),
    row("tgi_local.conversation", only=""),
    row("tgi_local.model_info", only=""),
    row("tgi_local.errors", only=""),
    row("tgi_local.bounded_threads", *VOCABULARY, only=""),
    row("tgi_local.paths", *VOCABULARY, only="platformdirs"),
    row("tgi_local.settings", *VOCABULARY, *parts("paths tgi_flags"), only="pydantic pydantic_settings"),
    row("tgi_local.tgi_flags", *VOCABULARY, only="pydantic pydantic_settings"),
    row("tgi_local.metrics", *VOCABULARY, only="prometheus_client"),
    row("tgi_local.logs", *VOCABULARY, only="structlog rich orjson"),
    row("tgi_local.protocol", *VOCABULARY, only="pydantic pydantic_core annotated_types orjson"),
    row("tgi_local.text", *VOCABULARY, only="tokenizers transformers jinja2 llguidance jsonschema orjson"),
    row("tgi_local.engine", *VOCABULARY, only="", never=frozenset({"asyncio"})),
    row("tgi_local.engine.engine_thread", *VOCABULARY, "tgi_local.engine", only=""),
    row("tgi_local.model", *VOCABULARY, "tgi_local.settings", "tgi_local.paths", "tgi_local.engine.step", never=WEB),
    row("tgi_local.validation", *VOCABULARY, *parts("settings protocol text"), only="pydantic"),
    row("tgi_local.stream", *VOCABULARY, "tgi_local.text", only=""),
    row("tgi_local.prompts", *VOCABULARY, *parts("text validation"), only=""),
    row("tgi_local.text_workers", *VOCABULARY, only=""),
    row("tgi_local.open_generation", *VOCABULARY, *parts("metrics text_workers stream engine.engine_thread"), only=""),
    row(
        "tgi_local.service",
        *VOCABULARY,
        *parts(
            "metrics text text_workers bounded_threads prompts validation stream open_generation engine.engine_thread"
        ),
        only="",
    ),
    row(
        "tgi_local.api",
        *VOCABULARY,
        *parts("settings metrics logs service open_generation protocol"),
        never=HEAVY | {"gradio", "gradio_client"},
    ),
)

MAX_FILE_LINES, MAX_APP_LINES, MAX_FUNCTION_LINES, MAX_CLASS_LINES = 400, 99, 60, 250
READS_ENVIRONMENT = {"app.py", "tgi_local/settings.py", "tgi_local/paths.py"}
IMPORT_NAMES = {  # where the import's name is not the distribution's, and the distribution may not be installed
    "opentelemetry": "opentelemetry-sdk",
    "pynvml": "nvidia-ml-py",
    "ray": "ray",
    "webview": "pywebview",
}


def product_files() -> list[Path]:
    files = [*(ROOT / "tgi_local").rglob("*.py"), *(ROOT / "ui").rglob("*.py"), ROOT / "app.py"]
    return sorted(path for path in files if path.exists())


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = product_files()
MODULES = {module_name(path): path for path in FILES}
each_file = pytest.mark.parametrize("path", FILES, ids=relative)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=relative(path))


def under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, wherever it stands; `from package import module` names the module."""
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in MODULES else base


def rule_for(module: str) -> Row:
    return max((rule for rule in CONTRACT if under(module, rule.owner)), key=lambda rule: len(rule.owner))


def breaks(rule: Row, name: str) -> bool:
    top = name.partition(".")[0]
    if top in {"tgi_local", "ui", "app"}:
        if rule.owner != "tgi_local" and under(name, rule.owner):
            return False
        # "tgi_local" admits the version and not the modules below it; "tgi_local.*" admits them all
        return not any(name == own or (own != "tgi_local" and under(name, own.removesuffix(".*"))) for own in rule.own)
    if top in rule.banned:
        return True
    return rule.third_party is not None and top not in rule.third_party and top not in sys.stdlib_module_names


@each_file
def test_imports_keep_the_contract(path: Path) -> None:
    rule = rule_for(module_name(path))
    wrong = [f"{relative(path)}:{line} imports {name}" for line, name in imports_of(path) if breaks(rule, name)]
    assert not wrong, f"the contract's row `{rule.owner}` does not allow:\n" + "\n".join(wrong)


def test_modules_import_in_one_direction() -> None:
    graph = {
        module: {name for _, name in imports_of(path) if name in MODULES} - {module} for module, path in MODULES.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("import cycle: " + " -> ".join(reversed(error.args[1])))


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@pytest.mark.parametrize("path", [path for path in FILES if path.match("tgi_local/**/__init__.py")], ids=relative)
def test_packages_import_nothing(path: Path) -> None:
    """So that one module can be imported without its neighbours, and the engine without torch."""
    code = [node for node in tree_of(path).body if not is_docstring(node)]
    if relative(path) == "tgi_local/__init__.py":
        assert [ast.unparse(node).partition(" = ")[0] for node in code] == ["__version__"]
    else:
        assert not code, f"{relative(path)}:{code[0].lineno} holds code; a package's __init__ holds its docstring only"


ENVIRONMENT = "the environment is read in settings.py, paths.py and app.py only"
RUNS_WHEN_READ = {"pickle", "marshal", "shelve", "joblib", "dill"}


def banned_names(path: Path) -> Iterator[tuple[int, str]]:
    may_read = relative(path) in READS_ENVIRONMENT
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Name | ast.Attribute | ast.alias):
            continue
        name = ast.unparse(node)
        if name.rpartition(".")[2] == "BaseHTTPMiddleware":
            yield node.lineno, "BaseHTTPMiddleware breaks streaming and cancellation: write pure ASGI"
        if name == "torch.load":
            yield node.lineno, "torch.load runs pickled code: safetensors only"
        if not may_read and name in {"os.environ", "os.getenv", "os.putenv"}:
            yield node.lineno, ENVIRONMENT


def banned_imports(path: Path) -> Iterator[tuple[int, str]]:
    may_read = relative(path) in READS_ENVIRONMENT
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = {alias.name for alias in node.names}
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        if not may_read and module == "os" and names & {"environ", "getenv", "putenv"}:
            yield node.lineno, ENVIRONMENT
        if {name.partition(".")[0] for name in (names if isinstance(node, ast.Import) else {module})} & RUNS_WHEN_READ:
            yield node.lineno, "formats that run code when read are not used"


def banned_calls(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called.endswith(".middleware") and node.args and ast.unparse(node.args[0]) == "'http'":
            yield node.lineno, '@app.middleware("http") is BaseHTTPMiddleware: write pure ASGI'
        if called in {"eval", "exec", "__import__", "import_module", "importlib.import_module"}:
            yield node.lineno, f"{called}: nothing is imported or run by name"
        if any(word.arg == "trust_remote_code" and ast.unparse(word.value) != "False" for word in node.keywords):
            yield node.lineno, "trust_remote_code: no remote code"


@each_file
def test_banned_constructs_are_absent(path: Path) -> None:
    wrong = [
        f"{relative(path)}:{line}: {reason}"
        for check in (banned_names, banned_imports, banned_calls)
        for line, reason in check(path)
    ]
    assert not wrong, "\n".join(wrong)


@each_file
def test_sizes_stay_readable(path: Path) -> None:
    ceiling = MAX_APP_LINES if relative(path) == "app.py" else MAX_FILE_LINES
    lines = len(path.read_text(encoding="utf-8").splitlines())
    wrong = [f"{relative(path)}: {lines} lines, at most {ceiling}"] if lines > ceiling else []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            ceiling = MAX_CLASS_LINES if isinstance(node, ast.ClassDef) else MAX_FUNCTION_LINES
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > ceiling:
                wrong.append(f"{relative(path)}:{node.lineno} {node.name}: {size} lines, at most {ceiling}")
    assert not wrong, "\n".join(wrong)


LIGHT = [
    name for name in MODULES if name.startswith("tgi_local.engine") or name in {"tgi_local.types", "tgi_local.errors"}
]


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        pytest.param(LIGHT, "torch transformers numpy fastapi gradio pydantic", id="engine"),
        pytest.param(
            [name for name in MODULES if name == "tgi_local.settings"],
            "torch transformers gradio fastapi",
            id="settings",
        ),
        pytest.param(
            [name for name in MODULES if name.startswith("tgi_local.bench")],
            "torch transformers numpy fastapi gradio pydantic httpx",
            id="bench",
        ),
    ],
)
def test_light_modules_stay_light(modules: list[str], absent: str) -> None:
    """In a fresh process, because this one has imported everything already."""
    code = (
        f"import sys, {', '.join(['tgi_local', *modules])}\nprint(*[n for n in {absent.split()!r} if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [], f"importing {', '.join(modules)} also imported {result.stdout.strip()}"


def documented_modules() -> list[str]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"^\| *`((?:app|(?:tgi_local|ui)/[\w/]+)\.py)` *\|", text, flags=re.MULTILINE)


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "__init__.py"], ids=relative)
def test_architecture_page_has_one_line_per_module(path: Path) -> None:
    count = documented_modules().count(relative(path))
    assert count == 1, (
        f"docs/architecture.md has {count} table lines that begin with | `{relative(path)}` |, and should have one"
    )


def test_architecture_page_names_only_what_exists() -> None:
    gone = [name for name in documented_modules() if not (ROOT / name).exists()]
    assert not gone, f"docs/architecture.md names modules that do not exist: {', '.join(gone)}"


@cache
def project() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def declared(extras: bool) -> dict[str, Requirement]:
    lines: list[str] = list(project()["dependencies"])  # type: ignore[call-overload]
    if extras:
        optional: dict[str, list[str]] = project()["optional-dependencies"]  # type: ignore[assignment]
        lines += [line for name, extra in optional.items() if name != "dev" for line in extra]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def test_imported_distributions_are_declared() -> None:
    providers = importlib.metadata.packages_distributions()
    allowed, wrong = set(declared(extras=True)), []
    for path in FILES:
        for line, name in imports_of(path):
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names or top in {"tgi_local", "ui", "app"}:
                continue
            names = {IMPORT_NAMES[top]} if top in IMPORT_NAMES else set(providers.get(top, [top]))
            if not {canonicalize_name(name) for name in names} & allowed:
                wrong.append(f"{relative(path)}:{line} imports {top}, which pyproject.toml does not declare")
    assert not wrong, "\n".join(wrong)


def test_requirements_pin_every_declared_dependency() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        canonicalize_name(pin.name): pin for pin in (Requirement(line) for line in lines if line and line[0] != "#")
    }
    for name, pin in pins.items():
        specifiers = list(pin.specifier)
        assert [specifier.operator for specifier in specifiers] == ["=="], (
            f"requirements.txt: {name} is not pinned by =="
        )
        assert "+" not in str(pin), f"requirements.txt: {name} has a local version, which no index serves"
    for name, requirement in declared(extras=False).items():
        assert name in pins, f"requirements.txt does not pin {name}"
        version = next(iter(pins[name].specifier)).version
        assert requirement.specifier.contains(version), f"requirements.txt: {name}=={version} is outside {requirement}"
