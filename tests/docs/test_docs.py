"""The documentation is read by tests, so that it cannot rot."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from ddfed.cli import cli
from ddfed.cli.method_pages import MUST_SAY, method_pages, of_the_house, unsaid
from ddfed.cli.reference import pages
from ddfed.config import read_toml

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(path: Path, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall(path.read_text()) if language in languages]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_point_at_files_that_exist(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_snippets_compile(path):
    for code in blocks(path, "python"):
        compile(code, str(path), "exec")


def commands() -> list[tuple[str, str]]:
    found = []
    for path in [*PAGES, ROOT / "simulations/ddfed_scenarios/README.md"]:
        text = "\n".join(blocks(path, "sh")) if path.name != "commands.md" else ""
        for line in text.replace("\\\n", " ").splitlines():
            if line.strip().startswith("ddfed "):
                found.append((path.name, line.strip().split("  #")[0].split(" > ")[0]))
    return found


@pytest.mark.parametrize(("where", "line"), commands())
def test_commands_in_the_docs_have_these_options(where, line):
    words = shlex.split(line)[1:]
    command: click.Command = cli
    path = []
    while isinstance(command, click.Group):
        context = click.Context(command)
        child = command.get_command(context, words[0])
        assert child is not None, f"{where}: no command {words[0]!r} in {line!r}"
        path.append(words.pop(0))
        command = child.load() if hasattr(child, "load") else child
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    for word in words:
        if word.startswith("-"):
            assert word.split("=")[0] in known, f"{where}: {word} is no option of ddfed {' '.join(path)}"


@pytest.mark.parametrize("name", ["commands.md", "settings.md"])
def test_reference_pages_are_what_the_program_says(name):
    shown = (ROOT / "docs/reference" / name).read_text()
    assert shown == pages()[name], "run: python -m ddfed.cli.reference docs/reference"


@pytest.mark.parametrize("recipe", list(of_the_house()), ids=lambda r: r.name)
def test_every_method_of_the_house_says_what_its_page_needs(recipe):
    missing = unsaid(recipe)
    assert not missing, f"recipe {recipe.name!r} ({recipe.family}) lacks {', '.join(missing)}; all must have {MUST_SAY}"


def test_method_pages_are_what_the_recipes_say():
    made = method_pages()
    shown = {path.name: path.read_text() for path in (ROOT / "docs/methods").glob("*.md")}
    make = "run: python -m ddfed.cli.reference docs/reference"
    assert sorted(set(made) - set(shown)) == [], f"methods without a page; {make}"
    assert sorted(set(shown) - set(made)) == [], "pages without a method; delete them"
    assert [name for name in made if made[name] != shown[name]] == [], f"pages out of date; {make}"


def test_every_setting_says_what_it_means():
    undescribed = [
        line for line in pages()["settings.md"].splitlines() if line.startswith("| `") and line.endswith("|  |")
    ]
    assert undescribed == []


def test_every_hook_is_described():
    import ddfed.hookspecs as specs

    text = (ROOT / "docs/reference/hooks.md").read_text()
    names = [name for name in vars(specs) if name.startswith("ddfed_")]
    assert names
    assert [name for name in names if f"`{name}(" not in text] == []


def test_every_kind_and_check_is_described():
    from ddfed.registry import KINDS

    text = (ROOT / "docs/reference/hooks.md").read_text()
    assert [kind for kind in KINDS if kind not in text] == []


def test_every_method_is_in_the_readme():
    from ddfed.registry import registry

    text = (ROOT / "README.md").read_text()
    assert [name for name in registry().names("recipe", "federated") if f"`{name}`" not in text] == []


@pytest.mark.parametrize("path", sorted((ROOT / "simulations/ddfed_scenarios").glob("*.toml")), ids=lambda p: p.stem)
def test_scenarios_are_settings_files_too(path):
    from ddfed.registry import registry
    from ddfed.settings import resolve_distill
    from ddfed_federated.settings import resolve_simulate

    layer = read_toml(path)
    central = layer.values["method"] in registry().names("recipe")
    settings = (resolve_distill if central else resolve_simulate)([layer]).settings
    assert settings.data.dataset in path.name


def test_every_federated_method_has_a_line_and_its_page_or_a_shared_one():
    from ddfed.registry import registry

    folder = ROOT / "docs/federated"
    index, shared = (folder / "index.md").read_text(), (folder / "averaging.md").read_text()
    for component in registry().of_kind("federated"):
        if component.plugin != "federated":
            continue
        assert f"`{component.name}`" in index, component.name
        own = (folder / f"{component.name}.md").exists()
        control = component.load().control
        assert own or control or f"`{component.name}`" in shared, f"docs/federated/{component.name}.md"
