"""Configs: precedence of their sources, recipes, former names, errors, help, and the shipped YAML files."""

import ast
import dataclasses
import os
from pathlib import Path

import jax
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jaxtempl.config import (
    converting,
    data,
    evaluation,
    experiments,
    mixture,
    parsing,
    paths,
    scaling,
    serving,
    sizes,
    training,
)
from jaxtempl.config.data import PrepareConfig
from jaxtempl.config.training import AdaptConfig, FinetuneConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.experiments import world
from jaxtempl.prepare import pipeline
from jaxtempl.specs import architecture
from jaxtempl.training import initialization, trainer

AREAS = (converting, data, evaluation, experiments, scaling, serving, training)
CLASSES = [
    kind
    for area in AREAS
    for name, kind in vars(area).items()
    if name.endswith("Config") and dataclasses.is_dataclass(kind)
]
GOLDEN = Path(__file__).parent / "golden"
SIZES = sorted(path.stem for path in (paths.CONFIGS / "sizes").glob("*.yaml"))


def parse(*argv: str) -> AdaptConfig:
    return parsing.parse(AdaptConfig, argv, lambda given: initialization.config_layers("adapt", given))


def test_flags_override_the_file_then_the_recipe_then_the_size(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("batch_size: 8\nlearning_rate: 2e-4\n")
    assert parse("--size=nano").batch_size == 16
    assert parse("--size=nano", "--recipe=paper").batch_size == 1024
    resolved = parse("--size=nano", "--recipe=paper", f"--config={file}", "--batch_size=4")
    assert (resolved.batch_size, resolved.learning_rate) == (4, 2e-4)


@pytest.mark.parametrize(("size", "rate"), [("410m", 3e-4), ("1.4b", 2e-4), ("2.8b", 1.6e-4)])
def test_the_adapt_recipe_equals_table_1_of_the_paper(size: str, rate: float) -> None:
    c = parse(f"--size={size}", "--recipe=paper")
    assert (c.learning_rate, c.steps, c.batch_size, c.schedule, c.warmup_ratio) == (rate, 14_500, 1024, "cosine", 0.01)
    assert (c.beta1, c.beta2, c.weight_decay, c.save_every, c.precision) == (0.9, 0.95, 0.01, 1450, "fp16")


@pytest.mark.parametrize("size", ["410m", "1.4b", "2.8b"])
def test_the_finetune_recipe_equals_table_2_of_the_paper(size: str) -> None:
    argv = [f"--size={size}", "--recipe=paper"]
    c = parsing.parse(FinetuneConfig, argv, lambda given: initialization.config_layers("finetune", given))
    assert (c.learning_rate, c.epochs, c.batch_size, c.schedule, c.warmup_ratio) == (1e-5, 1, 128, "linear", 0.1)
    assert (c.beta1, c.beta2, c.weight_decay, c.length, c.precision) == (0.9, 0.99, 0.0, 512, "fp16")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--size=nano", "--sede=3"], "nearest: --seed"),
        (["--size=nano", "--steps=many"], "not a whole number"),
        (["--size=nano", "--steps=1.5"], "not a whole number"),
        (["--size=nano", "--batch_size=0"], "1 or more is allowed"),
        (["--size=nano", "--gradient_accumulation_steps=-1"], "0 or more is allowed"),
        (["--size=nano", "--epochs=nan"], "0 or more is allowed"),
        (["--size=nano", "--seed=-1"], "0 or more is allowed"),
        (["--size=nano", "--resume=perhaps"], "allowed: auto, must, never"),
        (["--size=4o0m"], "allowed: "),
        ([], "--size=SIZE, --weights=DIR|HUB or --from=RUN"),
    ],
)
def test_the_error_of_a_wrong_flag_is_one_line_with_a_remedy(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(*argv)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a list\n", "holds list"),
        (b"a: [\n", "is not YAML"),
        (b"sizze: nano\n", "nearest: --size"),
        (b"1: nano\n", "'1' is unknown"),
        (b"seed: 2024-13-45\n", "is not YAML"),
        (b"[" * 1000, "is not YAML"),
        ("# réglages\nseed: 3\n".encode("latin-1"), "is not UTF-8 text: invalid continuation byte at byte 3"),
    ],
)
def test_the_error_of_a_bad_file_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(UserError) as raised:
        parse(f"--config={tmp_path / 'bad.yaml'}", "--size=nano")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_config_is_read_with_and_without_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes("# réglages\nseed: 3\n".encode(encoding))
    assert parse(f"--config={tmp_path / 'mine.yaml'}", "--size=nano").seed == 3


@given(st.integers(0, 10**9), st.floats(0, 1e6), st.text("abc:/.%-_ é", max_size=8), st.booleans())
def test_a_dumped_config_is_read_back_unchanged(number: int, real: float, text: str, switch: bool) -> None:
    original = FinetuneConfig(seed=number, batch_size=1, learning_rate=real, out=text, role_tags=switch)
    assert parsing.build(FinetuneConfig, yaml.safe_load(parsing.dump(original))) == original


def test_lists_and_paths_are_parsed() -> None:
    c = parsing.parse(PrepareConfig, ["--transcripts=a,b", "--fractions=0.8,0.1,0.1", "--out=x/y"])
    assert (c.transcripts, c.fractions, c.out) == (("a", "b"), (0.8, 0.1, 0.1), Path("x/y"))


def test_a_tilde_after_the_equals_sign_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("templates: ~/t.json\nlabel: ~x\n")
    flags = ["--config=~/c.yaml", "--transcripts=~/a,~/b,s3://x/~/c", "--out=~/out", "--tokenizer=~/t"]
    c = parsing.parse(PrepareConfig, flags)
    assert c.transcripts == (f"{tmp_path}/a", f"{tmp_path}/b", "s3://x/~/c")
    assert (c.out, c.tokenizer, c.templates) == (tmp_path / "out", f"{tmp_path}/t", f"{tmp_path}/t.json")
    assert c.label == "~x"
    assert mixture.parse_mixture("~/a:2,~/b:1") == [(tmp_path / "a", 2.0), (tmp_path / "b", 1.0)]


def test_a_comma_in_the_name_of_an_existing_file_does_not_split_it(tmp_path: Path) -> None:
    names = ["a", "a,b", "a,b,c.jsonl", "d", "x" * 300]
    for name in names[:4]:
        (tmp_path / name).touch()
    listed = [str(tmp_path / name) for name in names]
    assert parsing.parse(PrepareConfig, [f"--transcripts={','.join(listed)}"]).transcripts == tuple(listed)
    assert mixture.parse_mixture(f"{tmp_path}/a,b:0.5,{tmp_path}/d:1") == [
        (tmp_path / "a,b", 0.5),
        (tmp_path / "d", 1.0),
    ]


def test_a_flag_that_is_not_utf8_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"--out='caf\\udce9' is not UTF-8 text"):
        parsing.parse(PrepareConfig, [os.fsdecode(b"--out=caf\xe9")])


def test_a_config_file_may_begin_with_a_byte_order_mark_and_must_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert parsing.parse(PrepareConfig, [f"--config={path}"]).seed == 3
    path.write_bytes(b"label: caf\xe9\n")
    with pytest.raises(UserError, match=r"c\.yaml is not UTF-8 text: .* at byte 10; save it as UTF-8"):
        parsing.load(path)


@pytest.mark.parametrize("path", sorted(paths.CONFIGS.rglob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_yaml_is_valid(path: Path) -> None:
    values = parsing.load(path)
    if path.parent.name == "sizes":
        architecture.architecture_from(values["architecture"])
        assert sizes.tokenizer_path(path.stem).is_file()
        parsing.build(AdaptConfig, values.get("adapt", {}))
        parsing.build(FinetuneConfig, values.get("finetune", {}))
        assert set(values) <= {"architecture", "weights", "revision", "tokenizer", "adapt", "finetune"}
    elif path.parent.name == "studies":
        for phase, kind in (("adapt", AdaptConfig), ("finetune", FinetuneConfig), ("prepare", PrepareConfig)):
            parsing.build(kind, values.get(phase, {}))
    elif path.parent.name == "worlds":
        assert world.read(path.stem).name == path.stem
    else:
        parsing.build(AdaptConfig if path.name.startswith("adapt") else FinetuneConfig, values)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_a_learning_rate_for_both_phases(size: str) -> None:
    assert parse(f"--size={size}").learning_rate > 0
    assert (
        parsing.parse(
            FinetuneConfig, [f"--size={size}"], lambda g: initialization.config_layers("finetune", g)
        ).learning_rate
        > 0
    )


READERS = {  # the packages that receive each command's config
    "PrepareConfig": ["prepare", "commands"],
    "TrainConfig": ["training", "parallel", "planning", "commands"],
    "AdaptConfig": ["training", "parallel", "planning", "commands"],
    "FinetuneConfig": ["training", "parallel", "planning", "commands"],
    "EvaluateConfig": ["evaluation", "commands"],
    "SuggestConfig": ["commands"],
    "ServeConfig": ["serve", "commands"],
    "ServeEventsExportConfig": ["serve/events", "commands"],
    "LoadtestConfig": ["loadtest"],
    "DemoConfig": ["commands"],
    "ExperimentAnalyseConfig": ["experiments", "commands"],
    "ExperimentCheckConfig": ["experiments", "commands"],
    "ExperimentPlanConfig": ["experiments", "commands"],
    "ExperimentReportConfig": ["commands"],
    "ExperimentSimulateConfig": ["commands"],
    "ScalingRunConfig": ["scaling"],
    "ScalingAlignConfig": ["scaling", "commands"],
    "ScalingReportConfig": ["scaling", "commands"],
    "ScalingAdviseConfig": ["commands"],
    "ScalingFilterConfig": ["scaling"],
    "ScalingFitConfig": ["scaling"],
    "ScalingLawsConfig": ["commands"],
    "ConvertHuggingfaceConfig": ["../converters/huggingface"],
    "ConvertOnnxConfig": ["../converters/onnx", "../converters/quantize"],
    "ConvertTensorrtConfig": ["../converters/tensorrt"],
    "ConvertTritonConfig": ["../converters/triton"],
}
NAMES = {"asked", "config", "self.config", "self._config", "subject.config"}  # names of a config in those files


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_config_field_is_read(kind: type) -> None:
    folders = (paths.PACKAGE / name for name in READERS[kind.__name__])
    read = {name for folder in folders for file in folder.rglob("*.py") for name in fields_read(file)}
    read |= set(pipeline.INPUTS)  # prepare looks these up by name
    if kind.__name__.startswith("Convert"):
        read |= fields_read(paths.ROOT / "converters" / "__main__.py")
    read |= {"recipe"}  # config_layers reads it from the flags, before the dataclass exists
    assert {field.name for field in dataclasses.fields(kind)} <= read


def fields_read(path: Path) -> set[str]:
    """Return the attributes that a file reads from a config."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if ast.unparse(node.value) in NAMES}


def test_fields_read_returns_only_fields_that_a_file_reads() -> None:
    assert "batch_size" in fields_read(paths.PACKAGE / "evaluation" / "scores.py")
    assert "json" not in fields_read(paths.PACKAGE / "evaluation" / "scores.py")


@pytest.mark.parametrize("size", SIZES)
def test_the_default_microbatch_has_8192_tokens(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    """The microbatch fits on one device; the batch itself is the paper's."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    length = 512 if size == "nano" else 2048
    settings = trainer.resolve_config(parse(f"--size={size}"), "adapt", 10, saves=10, length=length)
    assert settings.batch_size % settings.gradient_accumulation_steps == 0
    assert settings.batch_size // settings.gradient_accumulation_steps * length == 8192
    assert (
        trainer.resolve_config(
            parse(f"--size={size}", "--batch_size=3"), "adapt", 10, 10, 8192
        ).gradient_accumulation_steps
        == 3
    )


FORMER = [(kind, field) for kind in CLASSES for field in dataclasses.fields(kind) if "was" in field.metadata]


@pytest.mark.parametrize(("kind", "field"), FORMER, ids=lambda value: getattr(value, "__name__", None) or value.name)
def test_a_former_flag_is_rejected_with_its_new_name(kind: type, field: dataclasses.Field[object]) -> None:
    former, current = field.metadata["was"], field.metadata.get("flag", field.name)
    with pytest.raises(UsageError, match=f"is now --{current}$"):
        parsing.parse(kind, [f"--{former}=1"])
    with pytest.raises(UsageError, match=f"is now --{current}$"):
        parsing.build(kind, {former: 1})
    assert parsing.current_keys(kind, {former: 1}) == {current: 1}


ADDED = {"decay_at"}  # fields that no run of format 1 has


@pytest.mark.parametrize(("phase", "kind"), [("adapt", AdaptConfig), ("finetune", FinetuneConfig)])
def test_the_config_of_a_run_of_format_1_is_read(phase: str, kind: type) -> None:
    former = dict.fromkeys((GOLDEN / f"{phase}.format1.config.yaml").read_text().split(), 1)
    assert {"batch", "rate", "warmup", "decay", "clip", "accumulate"} <= set(former)
    assert set(parsing.current_keys(kind, former)) | ADDED == set(yaml.safe_load(parsing.dump(kind())))


def test_former_names_are_unique_and_not_current() -> None:
    for kind in CLASSES:
        former = [field.metadata["was"] for other, field in FORMER if other is kind]
        assert len(former) == len(set(former))
        assert not set(former) & {field.metadata.get("flag", field.name) for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_line_of_help_is_a_sentence_or_a_noun_phrase(kind: type) -> None:
    for field in dataclasses.fields(kind):
        text = field.metadata["help"]
        assert text.endswith("."), f"{field.name}: {text}"
        assert text[0].isupper() or not text[0].isalpha(), f"{field.name}: {text}"
        assert not text.startswith(("Of ", "That ", "What ", "Who ", "Where ", "By ", "To ")), f"{field.name}: {text}"


def test_null_in_yaml_means_the_default(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("templates:\nmin_count: 2\n")
    resolved = parsing.parse(PrepareConfig, [f"--config={tmp_path / 'mine.yaml'}"])
    assert (resolved.templates, resolved.min_count) == ("", 2)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_help_names_and_explains_every_flag(kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parsing.parse(kind, ["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(kind):
        assert field.metadata["help"].split()[0] in shown
        assert field.metadata.get("flag", field.name) in shown
