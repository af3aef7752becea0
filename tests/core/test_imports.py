"""Who may import whom, what nobody may use, and what starting up must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "ddfed"
#: Packages outside the core, wherever they are kept.
EXTENSIONS = sorted(
    p for room in ("domains", "plugins", "simulations") for p in (ROOT / room).glob("ddfed_*") if p.is_dir()
)
FILES = sorted(f for package in (CORE, *EXTENSIONS) for f in package.rglob("*.py"))
#: Optional packages that belong to one extension each.
OPTIONAL = {"flwr", "ray", "opacus", "torch_geometric", "torchaudio"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), relative(path))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Full names of the modules a file imports, wherever it does so, and strings that name one to be imported."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{relative(path)}:{node.lineno}: relative import"
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith(("import_module", "__import__"))
            and node.args
        ):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value, node.lineno


def package(name: str) -> str:
    return name.partition(".")[0]


def test_there_is_something_to_look_at():
    assert len(FILES) > 60 and {"ddfed_image", "ddfed_federated"} <= {p.name for p in EXTENSIONS}


def test_the_core_imports_no_extension_and_none_of_their_packages():
    wrong = [
        f"{relative(path)}:{line}: {name}"
        for path in CORE.rglob("*.py")
        for name, line in imported(path)
        if package(name).startswith("ddfed_") or package(name) in OPTIONAL
    ]
    assert not wrong


@pytest.mark.parametrize("extension", EXTENSIONS, ids=lambda p: p.name)
def test_an_extension_imports_the_core_and_itself_only(extension: Path):
    wrong = [
        f"{relative(path)}:{line}: {name}"
        for path in extension.rglob("*.py")
        for name, line in imported(path)
        if package(name).startswith("ddfed_") and package(name) != extension.name
    ]
    assert not wrong


def test_federated_methods_in_the_core_know_no_flower():
    assert not [n for n, _ in imported(CORE / "federation.py") if package(n) in ("flwr", "ray", "grpc")]


def test_nothing_reads_or_writes_pickles():
    """No pickle, no ``torch.load`` and no ``allow_pickle``: an artifact from a stranger must not run code.

    Loading weights only is no pickle, and what it raises on refusal may be caught.
    """
    wrong = []
    for path in FILES:
        found = list(imported(path))
        refusals = {line for name, line in found if name == "pickle.UnpicklingError"}
        for name, line in found:
            if line in refusals and name in ("pickle", "pickle.UnpicklingError"):
                continue
            if package(name) in {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}:
                wrong.append(f"{relative(path)}:{line}: {name}")
        nodes = list(ast.walk(tree(path)))
        safe = {id(node.func) for node in nodes if isinstance(node, ast.Call) and _weights_only(node)}
        for node in nodes:
            if id(node) in safe:
                continue
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
                wrong.append(f"{relative(path)}:{node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                wrong.append(f"{relative(path)}:{node.value.lineno}: allow_pickle")
    assert not wrong


def _weights_only(call: ast.Call) -> bool:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return ast.unparse(call.func) == "torch.load" and given.get("weights_only") == "True"


def test_nothing_draws_from_global_random_states():
    """`ddfed.seeds` gives every stream; the clock may be read, the global generators may not."""
    drawing = {"torch.manual_seed", "torch.seed", "numpy.random.seed", "np.random.seed", "numpy.random.rand",
               "np.random.rand", "random.seed", "random.random", "random.shuffle", "random.choice"}  # fmt: skip
    wrong = [
        f"{relative(path)}:{node.lineno}: {ast.unparse(node.func)}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in drawing
    ]
    assert not wrong


def test_no_file_names_a_place_on_somebody_s_machine():
    # Put together here, so that this file is not its own first finding.
    places = ["/" + "work/", "../" + "shared", "/" + "home/"]
    wrong = [
        f"{relative(path)}: {place}" for path in FILES for place in places if place in path.read_text(encoding="utf-8")
    ]
    assert not wrong


def test_the_walker_sees_imports_inside_functions_and_by_name(tmp_path: Path):
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    from flwr.app import Message\n    importlib.import_module('ray.util')\nimport a.b as c\n"
    )
    assert {n for n, _ in imported(path)} == {"flwr.app", "flwr.app.Message", "ray.util", "a.b"}


def started(code: str) -> str:
    """Run code in a fresh interpreter; its output."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


HEAVY = "[m for m in ('torch', 'matplotlib', 'flwr', 'ray', 'pydantic', 'PIL', 'sklearn') if m in sys.modules]"


def test_importing_the_package_and_filling_the_registry_load_no_torch():
    assert started(f"import sys, ddfed; print({HEAVY})") == "[]"
    assert started(f"import sys, ddfed.registry as r; assert r.registry().names('recipe'); print({HEAVY})") == "[]"


@pytest.mark.parametrize("first", ["", "import ddfed.central", "import ddfed.distill, ddfed.registry, ddfed.evaluate"])
def test_public_names_mean_the_same_whatever_was_imported_before(first: str):
    """Bug found by this test: ``ddfed.distill`` was a function at first sight and a module ever after."""
    code = (
        f"{first}\nimport ddfed, types\n"
        "for name in ddfed.__all__:\n"
        "    assert getattr(ddfed, name) is getattr(ddfed, name), name\n"
        "for name in ('distill', 'evaluate', 'registry'):\n"
        "    assert isinstance(getattr(ddfed, name), types.ModuleType), name\n"
        "from ddfed import SyntheticSet, Task, RealData, PlainGate, Domain\n"
        "assert all(isinstance(c, type) for c in (SyntheticSet, Task, RealData, PlainGate, Domain))\n"
        "assert callable(ddfed.distill.distill) and ddfed.registry.registry().names('recipe')\n"
        "try:\n    ddfed.nothing\nexcept AttributeError as error:\n    print(error)"
    )
    assert started(code) == "module 'ddfed' has no attribute 'nothing'"
