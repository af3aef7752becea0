"""Where PyTorch Geometric is not installed, everything is listed, and what needs it says how to get it.

Its absence is simulated in interpreters of their own, in which the import system does not find it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Python runs it before anything else.
BLIND = """
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None:
        None if name.partition(".")[0] == "torch_geometric" else found(name, path, target)
)
"""
PIP = 'pip install "ddfed[graph]"'


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs code, or the command line with words, without PyTorch Geometric."""
    folder = tmp_path_factory.mktemp("blind")
    (folder / "sitecustomize.py").write_text(BLIND)
    # What this process can import, the other can, whatever its place.
    paths = [str(folder), *(p for p in sys.path if p and Path(p).is_dir())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment, cwd=folder
        )

    return run


@pytest.fixture(scope="module")
def ddfed(python):
    return lambda *words: python("import sys; from ddfed.cli import main; main(sys.argv[1:])", *words)


def test_it_is_hidden_indeed(python):
    code = "import importlib.util as u; print(u.find_spec('torch_geometric'), u.find_spec('torch') is not None)"
    assert python(code).stdout.split() == ["None", "True"]
    assert "No module named 'torch_geometric'" in python("import torch_geometric").stderr


def test_the_domain_is_listed_with_the_way_to_get_it(ddfed):
    rows = {row["name"]: row for row in json.loads(ddfed("domains", "list", "--json").stdout)}
    assert rows["graph"]["state"] == f"not installed: {PIP}" and rows["image"]["state"] == "installed"
    assert f"not installed: {PIP}" in ddfed("domains", "list").stdout


def test_the_methods_are_listed_and_told(ddfed):
    rows = {row["name"]: row for row in json.loads(ddfed("methods", "list", "--json").stdout)}
    assert rows["gcond"]["needs"][-1] == f"torch_geometric ({PIP})" and rows["gcond"]["family"] == "gradients"
    shown = ddfed("methods", "show", "gcond").stdout
    assert PIP in shown and "equation" in shown and "pge" in shown
    told = json.loads(ddfed("methods", "show", "gcond", "--json").stdout)
    assert told["needs"] == rows["gcond"]["needs"] and told["domains"] == ["graph"]


def test_pages_of_methods_are_made(python):
    done = python("from ddfed.cli.method_pages import method_pages; print('gcond.md' in method_pages())")
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--domain", "graph", "--dataset", "digits", "--method", "dm"], "domain 'graph'"),
        (["--domain", "graph", "--method", "gcond"], "domain 'graph'"),
    ],
)
def test_distilling_says_what_to_install(ddfed, words, what):
    done = ddfed("distill", *words)
    assert done.returncode == 1
    assert done.stderr == f"error: {what} needs torch_geometric, which is not installed: {PIP}\n"


def test_the_plugin_loads_neither_torch_nor_what_is_absent(python):
    heavy = "[m for m in ('torch', 'numpy', 'torch_geometric', 'networkx', 'scipy', 'sklearn') if m in sys.modules]"
    assert python(f"import sys, ddfed_graph.plugin; print({heavy})").stdout.strip() == "[]"


def test_every_module_is_imported_without_it(python):
    code = (
        "import importlib, pkgutil, ddfed_graph\n"
        "for module in pkgutil.walk_packages(ddfed_graph.__path__, 'ddfed_graph.'):\n"
        "    importlib.import_module(module.name)\n"
    )
    assert python(code).returncode == 0, python(code).stderr
