"""The plugin names what it offers and stays light."""

from __future__ import annotations

import subprocess
import sys

from ddfed.registry import Registry
from ddfed_image import plugin


def test_registers_the_domain_and_every_data_set(domain):
    registry = Registry()
    plugin.ddfed_register(registry=registry)
    assert registry.load("domain", "image") is type(domain)
    assert registry.names("dataset") == [
        f"image/{name}" for name in ("cifar10", "cifar100", "digits", "fashion", "folder", "mnist")
    ]
    for name in registry.names("dataset"):
        component = registry.get("dataset", name)
        assert callable(component.load())
        assert component.summary and component.extra == "image" and "files" in component.facts


def test_stated_sizes_of_digits_are_true(domain):
    task = domain.load("digits", None, {})
    registry = Registry()
    plugin.ddfed_register(registry=registry)
    facts = registry.get("dataset", "image/digits").facts
    assert (len(task.train), len(task.test), task.info.num_classes) == (
        facts["train"],
        facts["test"],
        facts["classes"],
    )


def test_importing_the_plugin_imports_neither_torch_nor_numpy():
    code = "import sys, ddfed_image.plugin; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
