"""What a model card says that depends on the model's family: code that runs, padding, and what the model is for."""

from typing import NamedTuple

from jaxtempl.specs.architecture import Family

CLASSIFIER = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "THIS_FOLDER"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
texts = {texts}  # oldest first

# The newest whole messages that fit in {length} tokens; a longer newest message keeps its last tokens.
pieces = tokenizer([texts[0], *(" " + text for text in texts[1:])]{plain})["input_ids"]
ids = pieces.pop()[-{length}:]
while pieces and len(ids) + len(pieces[-1]) <= {length}:
    ids = pieces.pop() + ids
{enclosed}
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0]
{retired}probability = torch.softmax(logits / {temperature}, dim=-1)
for slot in probability.topk({count}).indices.tolist():
    print(model.config.id2label[slot], round(float(probability[slot]), 4))
"""

EXCLUDE_RETIRED = """logits[{slots}] = -torch.inf  # slots of retired templates
"""

GENERATION = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "THIS_FOLDER"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
asked = tokenizer("<CUSTOMER>: Where is my card?\\n<ADVOCATE>:", return_tensors="pt")
said = model.generate(**asked, max_new_tokens=40, do_sample=False)
print(tokenizer.decode(said[0]))
"""

FILL_MASK = """from transformers import AutoModelForMaskedLM, AutoTokenizer

folder = "THIS_FOLDER"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForMaskedLM.from_pretrained(folder)
asked = tokenizer(f"<CUSTOMER>: Where is my {tokenizer.mask_token}?", return_tensors="pt")
hidden = asked["input_ids"][0] == tokenizer.mask_token_id
print(tokenizer.decode(model(**asked).logits[0, hidden].argmax(dim=-1)))
"""

NEOX_BATCHES = """Rows of a batch may be padded on either side (`tokenizer.padding_side`, right unless it is set): with
`{token}`, id {id}. Pass `attention_mask` beside `input_ids`; `position_ids` are not needed, since only
distances between tokens count. {own} The tokenizer makes no special token of a text: `<|endoftext|>` that
somebody typed is read as its characters."""

BERT_BATCHES = """Rows of a batch are padded on the right, with `{token}`, id {id}: positions are counted from a
row's first token, `[CLS]`, and its last is `[SEP]`. Pass `attention_mask` beside `input_ids`; `token_type_ids` are not
needed. {own}"""


class CardTexts(NamedTuple):
    """Of one family.

    Attributes:
        name: of the family.
        task: of its language model, as the hub names that.
        language_model: code that uses one.
        plain: argument that keeps the tokenizer from adding special tokens.
        enclosed: code that adds them.
        batches: how rows are padded.
        own: what follows that, by phase.
        limit: of its language model.
    """

    name: str
    task: str
    language_model: str
    plain: str
    enclosed: str
    batches: str
    own: dict[str, str]
    limit: str


TEXTS: dict[Family, CardTexts] = {
    "gpt_neox": CardTexts(
        name="GPT-NeoX",
        task="text-generation",
        language_model=GENERATION,
        plain="",
        enclosed="",
        batches=NEOX_BATCHES,
        own={
            "finetune": "The classifier answers at a row's right-most id that is not {id}: no row may end in one of "
            "its own.",
            "adapt": "For `generate`, pad on the left.",
        },
        limit="It writes what such transcripts look like. It follows no instructions, and what it writes may be "
        "untrue.",
    ),
    "bert": CardTexts(
        name="BERT",
        task="fill-mask",
        language_model=FILL_MASK,
        plain=", add_special_tokens=False",
        enclosed="ids = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]\n",
        batches=BERT_BATCHES,
        own={
            "finetune": "The tokenizer makes no special token of a text: `[MASK]` that somebody typed is read as its "
            "characters.",
            "adapt": "A special token in a text is read as one, so that `[MASK]` can be asked for.",
        },
        limit="It tells which word is hidden in such transcripts. It writes no text.",
    ),
}
