"""Any GPT-NeoX or BERT checkpoint trains from --weights alone: its config.json, tokenizer and tensors are enough.

The config.json files are those of published models on the hub; the weights are random and of a tiny shape.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
import yaml
from flax import nnx
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, BertTokenizerFast, GPTNeoXConfig, GPTNeoXForCausalLM

from converters.__main__ import main as convert
from jaxtempl import cli
from jaxtempl.__main__ import command
from jaxtempl.config.paths import ASSETS
from jaxtempl.config.sizes import tokenizer_path
from jaxtempl.config.training import AdaptConfig
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import UserError
from jaxtempl.huggingface import checks, config, hub, load
from jaxtempl.models import factory
from jaxtempl.runs.run import Run
from jaxtempl.specs import flops, published
from jaxtempl.text.pretrained import folder_tokenizer, model_folder, read_tokenizer
from jaxtempl.text.tokenizer import Tokenizer

NEOX: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "rotary_emb_base": 10000,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_parallel_residual": True,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "dolly-v2-3b": NEOX
    | {
        "custom_pipelines": {"text-generation": {"impl": "instruct_pipeline.InstructionTextGenerationPipeline"}},
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "rotary_pct": 0.25,
        "torch_dtype": "bfloat16",
        "vocab_size": 50280,
    },
    "RedPajama-INCITE-Base-3B-v1": NEOX
    | {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "rotary_pct": 1.0,
        "torch_dtype": "float16",
        "use_parallel_residual": False,
        "vocab_size": 50432,
    },
    "polyglot-ko-1.3b": NEOX
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "num_steps": "global_step213000",
        "rotary_pct": 0.5,
        "torch_dtype": "float16",
        "vocab_size": 30080,
    },
    "stablelm-base-alpha-3b": NEOX
    | {
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "max_position_embeddings": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "rotary_pct": 0.25,
        "torch_dtype": "float32",
        "vocab_size": 50688,
    },
}
NEAREST = {
    "dolly-v2-3b": "2.8b",
    "RedPajama-INCITE-Base-3B-v1": "2.8b",
    "polyglot-ko-1.3b": "1.4b",
    "stablelm-base-alpha-3b": "2.8b",
}
PADDED = 8320  # embedding rows: 128 more than the tokenizer's ids
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
ONE_STEP = (
    "--steps=1",
    "--batch_size=8",
    "--gradient_accumulation_steps=1",
    "--save_every=1",
    *tiny.ONE_DEVICE,
)


def call(*argv: str) -> int:
    return cli.run(command(argv[0]), argv[1:])


def neox_folder(folder: Path, name: str) -> Path:
    """Write a tiny random model with the published config.json and dtype."""
    keys = PUBLISHED[name] | TINY | {"vocab_size": PADDED}
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**{k: v for k, v in keys.items() if k != "custom_pipelines"}))
    model.to(getattr(torch, keys["torch_dtype"])).save_pretrained(folder / name)
    (folder / name / "config.json").write_text(json.dumps(keys))
    shutil.copy(ASSETS / "nano" / "tokenizer.json", folder / name)
    return folder / name


def bert_folder(folder: Path, words: str = "", prefix: str = "", **options: Any) -> Path:
    """Write a BertModel as sentence-transformers does: no head, vocab.txt, a subfolder that modules.json names."""
    inner = folder / "0_Transformer"
    torch.manual_seed(0)
    shape = BertConfig(**TINY, vocab_size=30528, max_position_embeddings=64)
    BertModel(shape).save_pretrained(inner)
    tensors = load_file(inner / "model.safetensors")
    stored = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    save_file(stored, inner / "model.safetensors", metadata={"format": "pt"})
    (inner / "vocab.txt").write_text(words or uncased_words())
    (inner / "tokenizer_config.json").write_text(json.dumps(options))
    modules = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def uncased_words() -> str:
    vocabulary = json.loads(tokenizer_path("bert-base").read_text())["model"]["vocab"]
    return "\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n"


def cased_words() -> str:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    parts = [*"Hheloawmyrdc", *(f"##{letter}" for letter in "helowrdystiarcé"), "Hello", "card", "my", "café", ",", "!"]
    return "\n".join([*special, *parts])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    return {name: neox_folder(root, name) for name in PUBLISHED} | {"sbert": bert_folder(root / "all-tiny-L2")}


@pytest.fixture(scope="module")
def data(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return two datasets whose rows are packed by the folders' tokenizers."""
    root = tmp_path_factory.mktemp("data")
    cases = tiny.dataset(root / "made").folder.parent
    splits = [f"--{split}={cases}/{split}.jsonl" for split in ("train", "validation", "test")]
    for name in ("dolly-v2-3b", "sbert"):
        given = (f"--tokenizer={folders[name]}", "--length=32", f"--out={root / name}")
        assert call("prepare", *splits, *given) == 0
    return {name: root / ("sbert" if name == "sbert" else "dolly-v2-3b") for name in folders}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read_completely(name: str) -> None:
    keys, a = PUBLISHED[name], config.architecture_from(PUBLISHED[name])
    assert (a.hidden, a.layers, a.heads) == (
        keys["hidden_size"],
        keys["num_hidden_layers"],
        keys["num_attention_heads"],
    )
    assert (a.vocabulary, a.positions) == (keys["vocab_size"], keys["max_position_embeddings"])
    assert (a.rotary_fraction, a.parallel_residual) == (keys["rotary_pct"], keys["use_parallel_residual"])
    assert published.nearest_size(a) == NEAREST[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_equal_those_of_transformers(folders: dict[str, Path], name: str) -> None:
    theirs = GPTNeoXForCausalLM.from_pretrained(folders[name], dtype=torch.float32).eval()
    read = load.read(folders[name])
    model: Any = nnx.merge(factory.make_graphdef(read.architecture, None), jnp_tree(read.params))
    ids = np.random.default_rng(0).integers(0, PADDED, (2, 17))
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(
        np.asarray(tiny.logits(model, jnp.asarray(ids))), expected, atol=1e-5 * np.abs(expected).max()
    )


def write_as_format_1(run: Path) -> None:
    """Rename the keys of config.yaml to those of format 1."""
    former = {field.name: field.metadata["was"] for field in dataclasses.fields(AdaptConfig) if "was" in field.metadata}
    keys = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({former.get(key, key): value for key, value in keys.items()}))
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))


def jnp_tree(tree: Any) -> Any:
    return {key: jnp_tree(value) if isinstance(value, dict) else jnp.asarray(value) for key, value in tree.items()}


@pytest.mark.parametrize("name", ["dolly-v2-3b", "stablelm-base-alpha-3b"])  # another test trains a third one
def test_adapt_and_finetune_need_only_weights(
    folders: dict[str, Path], data: dict[str, Path], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (f"--weights={folders[name]}", f"--data={data[name]}", *ONE_STEP)
    assert call("adapt", *given, f"--out={tmp_path / 'adapted'}") == 0
    adapted, a = Run(tmp_path / "adapted"), checks.read_architecture(folders[name])
    assert (adapted.manifest["size"], adapted.architecture) == (name, a)
    assert adapted.tokenizer.sha256 == Tokenizer(ASSETS / "nano" / "tokenizer.json").sha256
    nearest = published.nearest_size(a)
    assert f"# {name} has {flops.parameter_count(a):,} parameters; its defaults are those of {nearest}" in (
        capsys.readouterr().out
    )
    assert call("finetune", *given, "--length=24", f"--out={tmp_path / 'tuned'}") == 0
    assert (Run(tmp_path / "tuned").manifest["size"], Run(tmp_path / "tuned").slots) == (name, 4)


def test_a_run_of_any_size_is_finetuned_resumed_evaluated_and_converted(
    folders: dict[str, Path], data: dict[str, Path], tmp_path: Path
) -> None:
    name = "RedPajama-INCITE-Base-3B-v1"
    adapt = ("adapt", f"--weights={folders[name]}", f"--data={data[name]}", *ONE_STEP, f"--out={tmp_path / 'adapted'}")
    assert call(*adapt) == 0
    assert call("adapt", f"--config={tmp_path / 'adapted' / 'config.yaml'}") == 0
    write_as_format_1(tmp_path / "adapted")
    assert call(*adapt) == 0
    start = ("finetune", f"--from={tmp_path / 'adapted'}", f"--data={data[name]}", "--length=24", *ONE_STEP)
    assert call(*start, f"--out={tmp_path / 'tuned'}") == 0
    assert Run(tmp_path / "tuned").manifest["size"] == name
    assert call("evaluate", f"--run={tmp_path / 'tuned'}", f"--data={data[name]}", "--baselines=false") == 0
    convert(["huggingface", f"--run={tmp_path / 'adapted'}", f"--out={tmp_path / 'converted'}"])
    assert checks.read_architecture(tmp_path / "converted") == Run(tmp_path / "adapted").architecture
    convert(["onnx", f"--run={tmp_path / 'tuned'}", f"--out={tmp_path / 'bundle'}", "--verify_contexts=8"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_plan_needs_only_the_config(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps(PUBLISHED[name]))
    given = (f"--weights={tmp_path / name}", "--device=a100-80", "--devices=8")
    assert call("adapt", "--plan", *given) == 0
    printed = capsys.readouterr().out
    a = config.architecture_from(PUBLISHED[name])
    assert f"{name}" in printed
    assert f"{flops.parameter_count(a):,}" in printed
    assert "FITS" in printed


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_sentence_encoder_without_a_head_can_be_finetuned(
    data: dict[str, Path], tmp_path: Path, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bert_folder(tmp_path / "all-tiny-L2", prefix=prefix)
    given = (f"--weights={folder}", f"--data={data['sbert']}", *ONE_STEP)
    assert call("finetune", *given, "--length=24", f"--out={tmp_path / 'tuned'}") == 0
    tuned = Run(tmp_path / "tuned")
    assert (tuned.manifest["size"], tuned.architecture.family) == ("all-tiny-L2", "bert")
    assert tuned.tokenizer.sha256 == Tokenizer(tokenizer_path("bert-base")).sha256
    capsys.readouterr()
    assert call("adapt", *given, f"--out={tmp_path / 'adapted'}") == 1
    assert "has no language-model head, which bin/adapt trains" in capsys.readouterr().err


def test_the_stored_pooler_is_used(folders: dict[str, Path]) -> None:
    contents = checks.check(hub.fetch(str(folders["sbert"])))
    assert (contents.head, "pooler" in contents.parts, "head" in contents.parts) == (None, True, False)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("uncased", {}),
        ("uncased", {"do_lower_case": True, "strip_accents": False}),
        ("uncased", {"do_lower_case": True, "tokenize_chinese_chars": False}),
        ("cased", {"do_lower_case": False}),
    ],
)
def test_a_vocabulary_tokenizes_as_transformers_does(tmp_path: Path, words: str, options: dict[str, Any]) -> None:
    folder = bert_folder(tmp_path, uncased_words() if words == "uncased" else cased_words(), **options)
    theirs = BertTokenizerFast(vocab=str(folder / "0_Transformer" / "vocab.txt"), **options)
    texts = ["Hello, my card!", "naïve CAFÉ café, 你好", "a\tb\n [MASK]  é\u0301x", "y" * 120, "", "…—😀"]
    plain = [text.replace("[MASK]", "mask") for text in texts]
    ours = folder_tokenizer(folder)
    assert ours is not None
    assert ours.encode(plain) == theirs(plain, add_special_tokens=False)["input_ids"]
    assert (ours.begin, ours.end, ours.mask) == ([theirs.cls_token_id], [theirs.sep_token_id], theirs.mask_token_id)
    assert ours.mask not in {number for ids in ours.encode(texts) for number in ids}
    assert read_tokenizer(folder / "0_Transformer" / "vocab.txt").sha256 == ours.sha256


@pytest.mark.parametrize(
    ("words", "message"),
    [("[PAD]\n[CLS]\n", r"vocab\.txt has no \[UNK\], \[SEP\]"), ("\udcff", "is not UTF-8 text")],
)
def test_an_invalid_vocabulary_raises_a_user_error(tmp_path: Path, words: str, message: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(words.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_tokenizer(tmp_path)


def test_modules_cannot_point_outside_their_folder(tmp_path: Path) -> None:
    for path, message in (("../other", "points outside"), ("/etc", "points outside"), ("2_Gone", "is not there")):
        (tmp_path / "modules.json").write_text(json.dumps([{"path": path, "type": "models.Transformer"}]))
        with pytest.raises(UserError, match=message):
            model_folder(tmp_path)
    for content in ({}, [1], [{"path": 3, "type": "models.Transformer"}], [{"path": "", "type": "models.Transformer"}]):
        (tmp_path / "modules.json").write_text(json.dumps(content))
        assert model_folder(tmp_path) == tmp_path


def test_weights_without_a_matching_tokenizer_are_rejected(
    folders: dict[str, Path], data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(folders["dolly-v2-3b"], tmp_path / "copy"))
    (copy / "tokenizer.json").unlink()
    given = (f"--weights={copy}", f"--data={data['dolly-v2-3b']}", *ONE_STEP, f"--out={tmp_path / 'run'}")
    assert call("finetune", *given, "--length=24") == 1
    assert "has neither tokenizer.json nor vocab.txt" in capsys.readouterr().err
    shutil.copy(ASSETS / "tokenizers" / "pythia.json", copy / "tokenizer.json")
    assert call("finetune", *given, "--length=24") == 1
    assert "ids and an embedding of 8,320 rows" in capsys.readouterr().err


def test_a_folder_named_like_a_size_of_another_shape_gets_a_custom_name(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from jaxtempl.training import initialization

    shutil.copytree(folders["dolly-v2-3b"], tmp_path / "410m")
    assert initialization.identify_model("", str(tmp_path / "410m"), "", "").size == "custom-410m"
    assert initialization.identify_model("", "assets/nano", "", "").size == "nano"
    for size, weights in (("4o0m", str(tmp_path / "410m")), ("4o0m", ""), ("", "random")):
        with pytest.raises(UserError, match="--size"):
            initialization.identify_model(size, weights, "", "")


def test_the_dataset_is_packed_by_the_folders_tokenizer(folders: dict[str, Path], data: dict[str, Path]) -> None:
    for name in ("dolly-v2-3b", "sbert"):
        tokenizer = folder_tokenizer(folders[name])
        assert tokenizer is not None
        assert len(Dataset(data[name]).rows(tokenizer, "train")) > 0
