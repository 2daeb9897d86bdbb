"""Suggest templates with two libraries: pip install onnxruntime tokenizers; python suggest_onnx.py BUNDLE CASE.json."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = Path(sys.argv[1])
messages = [m for m in json.loads(Path(sys.argv[2]).read_text("utf-8"))["messages"] if (m.get("text") or "").strip()]
bundle = json.loads((folder / "bundle.json").read_text("utf-8"))
templates = json.loads((folder / "templates.json").read_text("utf-8"))
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.encode_special_tokens = True  # what a customer types is text, `<|endoftext|>` too
tokenizer.no_padding()
tokenizer.no_truncation()

# The window: the newest whole messages that fit, joined by a space; a newest message that is too long keeps its end.
window, room = list[int](), bundle["window"] - bundle["special_tokens"]
for i, message in reversed(list(enumerate(messages))):
    tag = f"<{message['role'].upper()}>: " if bundle["role_tags"] else ""
    ids = tokenizer.encode((" " if i else "") + tag + message["text"], add_special_tokens=False).ids
    if len(ids) + len(window) > room:
        window = window or ids[-room:]
        break
    window = ids + window
if bundle["special_tokens"]:  # a BERT reads its window between [CLS] and [SEP]
    window = [tokenizer.token_to_id("[CLS]"), *window, tokenizer.token_to_id("[SEP]")]

runtime = onnxruntime.__version__
if bundle["dtype"] == "fp16" and bundle.get("form") == "fused" and tuple(map(int, runtime.split(".")[:2])) < (1, 25):
    sys.exit(f"onnxruntime {runtime} takes seconds for fused attention in float16; install 1.25 or newer")
options, processor = onnxruntime.SessionOptions(), Path("/proc/cpuinfo")
# Without VNNI, products of int8 saturate unless this option is set; with it, the option would double their time.
has_vnni = processor.exists() and re.search(r"\b(amx_int8|avx512_vnni|avx_vnni)\b", processor.read_text())
options.add_session_config_entry("session.x64quantprecision", "0" if has_vnni else "1")
session = onnxruntime.InferenceSession(folder / bundle["model"], options)
feeds = {"input_ids": np.array([window], np.int32), "lengths": np.array([[len(window)]], np.int32)}
logits = session.run(["logits"], feeds)[0][0, : len(templates)] / bundle["temperature"]
logits[[not template["active"] for template in templates]] = -np.inf
probability = np.exp(logits - np.logaddexp.reduce(logits))
for slot in np.argsort(-probability, kind="stable")[:5]:
    print(f"{probability[slot]:6.1%}  {templates[slot]['id']}  {' '.join(templates[slot]['text'].split())}")
