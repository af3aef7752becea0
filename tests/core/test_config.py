"""Layers, origins, and messages that suffice to mend a settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ddfed.config import Layer, describe, parse_set, read_toml, resolve, to_template, to_toml
from ddfed.errors import ConfigError


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Distill(Strict):
    steps: int = Field(100, ge=1)
    lr: float = Field(0.1, gt=0, allow_inf_nan=False)
    store: Literal["pixels", "multiformation"] = "pixels"
    limit: int | None = 500
    augment: str | None = None
    batch: int | Literal["auto"] = "auto"
    options: dict[str, Any] = {}

    @field_validator("augment")
    @classmethod
    def known(cls, value: str | None) -> str | None:
        if value == "cutmix":
            raise ValueError("cutmix mixes classes")
        return value


class Evaluate(Strict):
    networks: tuple[str, ...] = ("convnet",)
    repeats: int = 3
    root: Path | None = None

    @model_validator(mode="after")
    def enough(self) -> Evaluate:
        if self.repeats > 1 and "linear" in self.networks:
            raise ConfigError("a linear network needs no repeats; set evaluate.repeats=1")
        return self


class Settings(Strict):
    seed: int = 0
    verbose: bool = False
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()


class Needy(Strict):
    name: str


def of(*texts: str) -> Settings:
    return resolve(Settings, [Layer("--set", parse_set(text)) for text in texts]).settings


def message(*texts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        of(*texts)
    return str(caught.value)


def test_later_layers_win_and_every_leaf_knows_its_origin():
    resolved = resolve(
        Settings,
        [
            Layer("a.toml", {"seed": 1, "distill": {"steps": 5, "options": {"x": 1, "y": 1}}}),
            Layer("--set", {"distill": {"steps": 7, "options": {"y": 2}}}),
        ],
    )
    assert (resolved.settings.seed, resolved.settings.distill.steps) == (1, 7)
    assert resolved.settings.distill.options == {"x": 1, "y": 2}
    origins = resolved.origins
    assert origins["seed"] == "a.toml" and origins["distill.steps"] == "--set"
    assert origins["distill.options.x"] == "a.toml" and origins["distill.options.y"] == "--set"
    assert origins["distill.lr"] == "default"
    assert [key for key, _, _ in describe(resolved)] == list(origins)
    assert ("distill.options.y", 2, "--set") in describe(resolved)


def test_layers_are_not_changed():
    values = {"distill": {"options": {"x": [1]}}}
    resolved = resolve(Settings, [Layer("a", values), Layer("b", {"distill": {"options": {"y": 2}}})])
    resolved.settings.distill.options["x"].append(2)
    assert values == {"distill": {"options": {"x": [1]}}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1e-3", 1e-3),
        ("a=pixels", "pixels"),
        ('a="3"', "3"),
        ("a=true", True),
        ('a=["convnet","mlp"]', ["convnet", "mlp"]),
        ("a=[convnet, mlp]", ["convnet", "mlp"]),
        ("a=[]", []),
        ("a={b = 1}", {"b": 1}),
        ("a=x=y", "x=y"),
        ("a=", ""),
        ("a=2024-05-01", "2024-05-01"),
        ("a=1\nb=2", "1\nb=2"),
    ],
)
def test_set_reads_toml_or_else_text(text: str, value: Any):
    assert parse_set(text) == {"a": value}


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=3", "a b=3", ".a=1"])
def test_malformed_set_shows_an_example(text: str):
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_set(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("distill.stepz=3", ["'distill.stepz'", "--set", "Did you mean 'distill.steps'?"]),
        ("steps=3", ["'steps'", "Did you mean 'distill.steps'?"]),
        ("evaluate.store=pixels", ["Did you mean 'distill.store'?"]),
        ("distil.steps=3", ["Did you mean 'distill'?"]),
        ("seed.x=3", ["'seed.x'", "a value, not a section"]),
        ("distill=3", ["'distill'", "a section", "distill.steps"]),
        ("distill.steps=0", ["'distill.steps'", "at least 1", "got 0", "--set"]),
        ("distill.steps=many", ["a whole number", "'many'"]),
        ("distill.steps=2.5", ["a whole number", "2.5"]),
        ("distill.lr=0", ["more than 0"]),
        ("distill.lr=inf", ["finite"]),
        ("distill.store=pixel", ["'pixels', 'multiformation'", "Did you mean 'pixels'?"]),
        ("distill.batch=x", ["'distill.batch'", "a whole number or one of 'auto'"]),
        ("distill.augment=3", ["text (in quotes)", "got 3"]),
        ("distill.augment=cutmix", ["'distill.augment'", "mixes classes"]),
        ("evaluate.networks=convnet", ["a list", "'convnet'"]),
        ("evaluate.networks=[1]", ["evaluate.networks.0", "text"]),
        ("evaluate.networks=[linear]", ["evaluate: a linear network needs no repeats"]),
        ("verbose=perhaps", ["true or false"]),
        ("distill.options=3", ["a table"]),
    ],
)
def test_wrong_settings_are_explained_in_one_line(text: str, words: list[str]):
    found = message(text)
    assert "\n" not in found
    for word in words:
        assert word in found


def test_several_wrong_settings_are_listed_together():
    assert message("distill.steps=0", "distill.lr=-1").count("\n") == 2


def test_a_required_setting_says_how_to_give_it():
    with pytest.raises(ConfigError, match="'name' is not given.*--set name=VALUE"):
        resolve(Needy, [])


def test_none_empties_only_fields_that_take_no_text():
    assert of("distill.limit=none").distill.limit is None
    assert of("distill.augment=none").distill.augment == "none"


def test_toml_round_trip(tmp_path: Path):
    settings = of(
        "distill.limit=none",
        'distill.options={a = [1, 2], b = {c = "x"}}',
        "evaluate.root=/data",
        "distill.lr=1e-7",
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(settings))
    again = resolve(Settings, [read_toml(path)])
    assert again.settings == settings
    assert "augment" not in path.read_text()
    assert again.origins["distill.steps"] == str(path)


def test_a_template_says_what_was_chosen_and_offers_the_rest(tmp_path: Path):
    layers = [Layer("recipe dm", {"distill": {"lr": 0.5}}), Layer("--set", parse_set("distill.options.a.b=[1,x]"))]
    resolved = resolve(Settings, layers)
    text = to_template(resolved, lambda origin: origin == "--set")
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert read_toml(path).values == {"distill": {"options": {"a": {"b": [1, "x"]}}}, "evaluate": {}}
    assert "# lr = 0.5\n" in text and '# root = "..."\n' in text and "# augment" in text
    path.write_text(text.replace("# ", "").replace('root = "..."\n', "").replace('augment = "..."\n', ""))
    assert resolve(Settings, [read_toml(path)]).settings == resolved.settings


def test_the_right_name_in_the_wrong_section_comes_before_names_that_look_alike():
    with pytest.raises(ConfigError, match=r"Did you mean 'distill.steps'"):
        of("evaluate.steps=3")


def test_files_that_cannot_be_read_say_why(tmp_path: Path):
    (tmp_path / "config.toml").write_text("seed = 1\n[distill\nsteps = 3\n")
    with pytest.raises(ConfigError, match=r"config.toml.*line 2.*'\[distill'"):
        read_toml(tmp_path / "config.toml")
    with pytest.raises(ConfigError, match="does not exist. Did you mean .*config.toml"):
        read_toml(tmp_path / "confg.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ConfigError, match="UTF-8"):
        read_toml(tmp_path / "latin.toml")
