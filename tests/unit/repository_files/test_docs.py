"""The documentation says what the code does: keys, defaults, options, verdicts, findings, commands, links."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from arsandbox.cli.app import app
from arsandbox.policies.model import Limits, Policy
from arsandbox.sandbox import config
from arsandbox.sandbox.engines.docker import container
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.measure import determinism
from arsandbox.sandbox.models import ImageRef, Stage, Verdict
from arsandbox.sandbox.quantities import parse_size
from arsandbox.sandbox.record import Record
from arsandbox_fixtures.places import ROOT

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "benchmarks/README.md",
    ROOT / "examples/tiny-lm/README.md",
]
SECTIONS: dict[str, type[BaseModel]] = {
    "Top level": config.ProjectConfig,
    "`[metric]`": config.MetricConfig,
    "`[prepare]`": config.PrepareConfig,
    "`[evaluate]`": config.EvaluateConfig,
    "`[evaluate.lm]`": config.LanguageModelConfig,
    "`[evaluate.predictions]`": config.PredictionsConfig,
    "`[caches.NAME]`": config.CacheConfig,
    "`[limits]`": config.LimitsConfig,
    "`[decision]`": config.DecisionConfig,
    "`[measurement]`": config.MeasurementConfig,
}


def section(page: str, heading: str) -> str:
    """The text below `heading` up to the next heading of the same or a higher level."""
    text = (ROOT / page).read_text()
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {heading!r}"
    return found[2]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row but heads."""
    for line in text.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
            if not set(line) <= set("|-: "):
                yield cells


def table(page: str, heading: str) -> dict[str, list[str]]:
    """First cell's code words to the other cells."""
    found: dict[str, list[str]] = {}
    for first, *others in rows(section(page, heading)):
        for name in re.findall(r"`([^`]+)`", first):
            found[name] = others
    return found


def test_every_section_of_the_config_has_a_place() -> None:
    models = {
        name
        for name, field in config.ProjectConfig.model_fields.items()
        if any(isinstance(a, type) and issubclass(a, config.Section) for a in _types(field))
    }
    inner = {f"evaluate.{name}" for name in ("lm", "predictions")} | {"caches.NAME"}
    models -= {"caches"}  # tables by names that the user chooses
    assert {f"`[{name}]`" for name in models | inner} | {"Top level"} == set(SECTIONS)


@pytest.mark.parametrize("heading", SECTIONS)
def test_config_keys_and_defaults(heading: str) -> None:
    fields = SECTIONS[heading].model_fields
    documented = table("docs/configuration.md", heading)
    assert set(documented) == set(fields)
    for name, field in fields.items():
        told = documented[name][1]
        real = field.get_default(call_default_factory=True)
        if told == "required":
            assert real is PydanticUndefined, name
        elif told == "none":
            assert real is None or isinstance(real, config.Section), name
        else:
            value = tomllib.loads(f"value = {told.strip('`')}")["value"]
            assert TypeAdapter(Annotated[field.annotation, field]).validate_python(value) == real, name


def test_options_of_run() -> None:
    options = {option for parameter in _command("run").params for option in parameter.opts if option.startswith("--")}
    assert set(table("docs/configuration.md", "Options of `arsandbox run`")) == options | {"--help"}


def test_environment_variables() -> None:
    spec = SandboxSpec(
        experiment="x", stage=Stage.TRAIN, image=ImageRef(name="cpu", digest="sha256:0"), command=("true",),
        environment={}, layers=(), limits=Limits(), deadline_s=1.0, scratch=ROOT, labels={},
    )  # fmt: skip
    real = {*container.environment(spec, 61000), *determinism(0), "ARSANDBOX_BUDGET_SECONDS"}
    assert set(table("docs/configuration.md", "What the code sees")) == real


def test_limits_and_bounds() -> None:
    documented = table("docs/policies.md", "Limits")
    assert set(documented) == set(Limits.model_fields)
    for name, cells in documented.items():
        text = cells[0].strip("`")
        value = parse_size(text) if name.endswith("_bytes") else float(text)
        assert value == Limits.model_fields[name].default, name
    assert set(table("docs/policies.md", "Permissions and demands")) >= {
        name for name in Policy.model_fields if name != "limits" and not name.startswith(("patch_", "artifact_"))
    }
    toml_names = {cells[1].strip("`") for cells in documented.values()} - {"none"}
    assert toml_names == set(config.LimitsConfig.model_fields)
    text = (ROOT / "docs/policies.md").read_text()
    for name, field in Policy.model_fields.items():
        if name.startswith(("patch_", "artifact_")):
            found = re.search(rf"^\| `{name}` \| `(\w+)` \|", text, re.MULTILINE)
            assert found, name
            assert (parse_size(found[1]) if name.endswith("_bytes") else int(found[1])) == field.default, name


def test_verdicts_and_exit_codes() -> None:
    cells = [row for row in rows(section("docs/records.md", "Verdicts and exit codes")) if row[0].startswith("`")]
    documented = {row[0].strip("`"): int(row[1]) for row in cells}
    assert documented == {verdict.value: verdict.exit_code for verdict in Verdict}


def test_finding_codes() -> None:
    source = "".join(path.read_text() for path in ROOT.glob("sandbox/**/*.py"))
    used = set(re.findall(r"\bremark\(\s*\"(\w+)\"", source)) | set(re.findall(r"\bFinding\(code=\"(\w+)\"", source))
    box = "".join(path.read_text() for path in ROOT.glob("sandbox/evaluation/box/*.py"))
    used |= set(re.findall(r"\bRefusedError\(\s*\"(\w+)\"", box))
    assert used
    assert set(table("docs/records.md", "Findings")) == used


def test_fields_of_the_record() -> None:
    assert set(table("docs/records.md", "Reading a record")) >= set(Record.model_fields)


def test_schema_is_up_to_date() -> None:
    real = json.dumps(Record.model_json_schema(mode="serialization"), indent=2, sort_keys=True) + "\n"
    assert (ROOT / "docs/record.schema.json").read_text() == real, "the command in docs/records.md makes it anew"


def test_the_two_commands_of_the_readme() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert [block.strip() for block in blocks] == ["scripts/demo", "scripts/test"]
    for name in ("scripts/demo", "scripts/test"):
        assert (ROOT / name).stat().st_mode & 0o111


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert file.is_relative_to(ROOT), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {_anchor(heading) for heading in headings}, f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    text = page.read_text()
    code = [*re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL), *re.findall(r"`([^`\n]+)`", text)]
    for line in "\n".join(code).splitlines():
        for found in re.finditer(r"(?:^|[\s;&])arsandbox ([a-z][a-z-]*)(?: ([a-z]+))?([^|;&#]*)", line):
            command = _command(found[1])
            if hasattr(command, "commands"):
                assert found[2] in command.commands, f"{page.name}: {line}"
                command = command.commands[found[2]]
            known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
            used = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", found[3].partition(" -- ")[0]))
            assert used <= known, f"{page.name}: {line}: {used - known}"


def _command(name: str) -> Any:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert name in commands, f"there is no command `arsandbox {name}`"
    return commands[name]


def _types(field: FieldInfo) -> list[Any]:
    return [field.annotation, *getattr(field.annotation, "__args__", ())]


def _without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<!\[)`[^`\n]+`(?!\])", "", text)


def _anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_lock_file_reaches_dockerfile_train() -> None:
    """The classic builder looks into no folder for a pattern, so that each is named."""
    named = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    locks = {str(path.relative_to(ROOT)) for path in ROOT.glob("images/*/requirements.lock")}
    assert locks and named == {*locks, "wheelhouse"}
