"""The texts of a model card that depend on the model's family: code to run, padding, and purpose."""

from typing import NamedTuple

from jaxtempl.specs.architecture import Family

CLASSIFIER = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "THIS_FOLDER"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
texts = {texts}  # oldest first

# The newest whole messages that fit in {length} tokens; a longer newest message keeps its last tokens.
messages = tokenizer([texts[0], *(" " + text for text in texts[1:])]{plain})["input_ids"]
ids = messages.pop()[-{length}:]
while messages and len(ids) + len(messages[-1]) <= {length}:
    ids = messages.pop() + ids
{enclosed}
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0]
probability = torch.softmax(logits, dim=-1)
for label in probability.topk({count}).indices.tolist():
    print(model.config.id2label[label], round(float(probability[label]), 4))
"""

GENERATION = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "THIS_FOLDER"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
prompt = tokenizer("<CUSTOMER>: Where is my card?\\n<ADVOCATE>:", return_tensors="pt")
generated = model.generate(**prompt, max_new_tokens=40, do_sample=False)
print(tokenizer.decode(generated[0]))
"""

FILL_MASK = """from transformers import AutoModelForMaskedLM, AutoTokenizer

folder = "THIS_FOLDER"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForMaskedLM.from_pretrained(folder)
prompt = tokenizer(f"<CUSTOMER>: Where is my {tokenizer.mask_token}?", return_tensors="pt")
masked = prompt["input_ids"][0] == tokenizer.mask_token_id
print(tokenizer.decode(model(**prompt).logits[0, masked].argmax(dim=-1)))
"""

NEOX_BATCHES = """Rows of a batch may be padded on either side (`tokenizer.padding_side`, by default right) with
`{token}`, id {id}. Pass `attention_mask` with `input_ids`; `position_ids` are not needed, because only
distances between tokens count. {phase} The tokenizer creates no special token from text: a typed
`<|endoftext|>` is read as its characters."""

PIPELINE = """For the texts joined by spaces, `pipeline("text-classification", folder)` gives the same probabilities.
Its `truncation=True` keeps the newest tokens that fit."""

BERT_BATCHES = """Rows of a batch are padded on the right with `{token}`, id {id}: positions count from a row's
first token, `[CLS]`, and its last token is `[SEP]`. Pass `attention_mask` with `input_ids`; `token_type_ids` are not
needed. {phase}"""


class CardTexts(NamedTuple):
    """The texts of one family.

    Attributes:
        name: Name of the family.
        task: The hub's name for the task of its language model.
        language_model: Code that uses a language model.
        plain: Argument that keeps the tokenizer from adding special tokens.
        enclosed: Code that adds special tokens.
        batches: Text on padding.
        phases: Text after it, by phase.
        limit: Limit of its language model.
    """

    name: str
    task: str
    language_model: str
    plain: str
    enclosed: str
    batches: str
    phases: dict[str, str]
    limit: str


TEXTS: dict[Family, CardTexts] = {
    "gpt_neox": CardTexts(
        name="GPT-NeoX",
        task="text-generation",
        language_model=GENERATION,
        plain="",
        enclosed="",
        batches=NEOX_BATCHES,
        phases={
            "finetune": "The classifier answers at a row's right-most id other than {id}, so no row's text may end in "
            f"that id. {PIPELINE}",
            "adapt": "For `generate`, pad on the left.",
        },
        limit="It generates text in the style of such transcripts. It follows no instructions, and its output may "
        "be untrue.",
    ),
    "bert": CardTexts(
        name="BERT",
        task="fill-mask",
        language_model=FILL_MASK,
        plain=", add_special_tokens=False",
        enclosed="ids = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]\n",
        batches=BERT_BATCHES,
        phases={
            "finetune": "The tokenizer creates no special token from text: a typed `[MASK]` is read as its characters. "
            f"{PIPELINE}",
            "adapt": "A special token in a text is read as such, so that a text may contain `[MASK]`.",
        },
        limit="It predicts masked words of such transcripts. It generates no text.",
    ),
}
