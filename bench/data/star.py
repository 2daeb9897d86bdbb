"""Makes the star transcripts and templates from RasaHQ/STAR (MIT).

    python -m bench.data.star --source=STAR --out=data/star

People played the agent: for each reply they typed a rough idea, were shown up to three canned replies and picked one
(event pick_suggestion, whose ActionLabel is the canned reply's id). That pick is `template`.

- customer: User/utter
- advocate: Wizard/pick_suggestion (`custom` is free text: null) and Wizard/utter (null)
- system: a look-up in the knowledge base, the query and what came back
- template2: `<task>/<ActionLabel>`, the task being the dialogue's only one, or the only one that has that reply, or
  the last one selected

Left out because they give the label away or are no part of the conversation: Wizard/request_suggestions (the typed
idea), ActionLabelOptions, UserGuide/instruct, select_*. Dialogues not completed go to `incomplete.jsonl.gz`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.data.common import Case, Message, arguments, clean, message, save, split_of

Tasks = dict[str, dict[str, str]]  # task -> id of a canned reply -> its text

_COMPARISON = re.compile(r"api\.is_(\w+)\((.*)\)$")


def literal(value: object) -> str:
    """A value of a query: `api.is_at_most("5")` becomes `at most 5`."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    match = _COMPARISON.match(value.strip())
    operator, operand = match.groups() if match else ("", value)
    words = "" if operator in ("", "equal_to") else operator.replace("_", " ") + " "
    return (words + operand.strip().strip('"')).strip()


def pairs(values: dict[str, Any]) -> str:
    """`key=value` of all but the API's name."""
    return ", ".join(f"{key}={literal(value)}" for key, value in values.items() if key != "APIName")


class Conversion:
    """Goes through one dialogue's events, remembering the selected task and the open query."""

    def __init__(self, capabilities: list[str], tasks: Tasks) -> None:
        """Starts with the only task of the dialogue, if it has one."""
        self._capabilities, self._tasks = capabilities, tasks
        self._task = capabilities[0] if len(capabilities) == 1 else None
        self._query: str | None = None

    def messages(self, events: list[dict[str, Any]]) -> Iterator[Message]:
        """The messages of the conversation, in order."""
        for event in events:
            match event.get("Agent"), event.get("Action"):
                case "User", "utter":
                    yield message("customer", event["Text"])
                case "Wizard", "select_task":
                    self._task = event["Task"]
                case "Wizard", "pick_suggestion" | "utter":
                    yield self._reply(event)
                case "Wizard", "query":
                    constraints = {key: value for some in event.get("Constraints", []) for key, value in some.items()}
                    self._query = f"{event['APIName']}({pairs(constraints)})"
                case "KnowledgeBase", "return_item":
                    yield self._answer(event)
                case _:
                    pass

    def _reply(self, event: dict[str, Any]) -> Message:
        label = event.get("ActionLabel")
        label = None if label in (None, "", "custom") else label
        return message("advocate", event.get("Text"), label, label and f"{self._task_of(label) or 'any'}/{label}")

    def _task_of(self, label: str) -> str | None:
        having = [task for task in self._capabilities if label in self._tasks.get(task, {})]
        if len(self._capabilities) == 1:
            return self._capabilities[0]
        return having[0] if len(having) == 1 else self._task

    def _answer(self, event: dict[str, Any]) -> Message:
        item, total = event.get("Item"), event.get("TotalItems")
        found = pairs(item) if item else "nothing found"
        more = f" [{total} items]" if isinstance(total, int) and total > 1 else ""
        query, self._query = self._query or event.get("APIName"), None
        return message("system", f"{query} -> {found}{more}")


def case(dialogue: dict[str, Any], tasks: Tasks) -> Case:
    """One dialogue as a case; it may turn out to have no messages."""
    scenario = dialogue["Scenario"]
    capabilities = [capability["Task"] for capability in scenario["WizardCapabilities"]]
    messages = Conversion(capabilities, tasks).messages(dialogue["Events"])
    return {
        "case_id": f"star-{dialogue['DialogueID']}",
        "messages": [made for made in messages if made["text"]],
        "tasks": capabilities,
        "happy": scenario["Happy"],
        "multi_task": scenario["MultiTask"],
        "complete": dialogue["CompletionLevel"] == "Complete",
    }


def read_tasks(source: Path) -> Tasks:
    """The canned replies of each task."""
    paths = sorted((source / "tasks").glob("*/responses.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def cases(source: Path, tasks: Tasks) -> Iterator[Case]:
    """All dialogues of a checkout that have messages, by number."""
    for path in sorted((source / "dialogues").glob("*.json"), key=lambda path: int(path.stem)):
        made = case(json.loads(path.read_text()), tasks)
        if made["messages"]:
            yield made


def templates(tasks: Tasks) -> list[dict[str, Any]]:
    """Each canned reply once, with the text that most of its tasks give it (of equals, the first task's)."""
    texts: dict[str, Counter[str]] = {}
    for _, replies in sorted(tasks.items()):
        for name, text in replies.items():
            texts.setdefault(name, Counter())[clean(text)] += 1
    common = {name: counter.most_common(1)[0][0] for name, counter in sorted(texts.items())}
    return [{"id": name, "text": text, "active": True} for name, text in common.items() if text]


if __name__ == "__main__":
    given = arguments(__doc__ or "")
    found = read_tasks(given.source)
    save(
        given.out,
        cases(given.source, found),
        lambda made: split_of(made["case_id"]) if made["complete"] else "incomplete",
    )
    listed = json.dumps(templates(found), indent=1, ensure_ascii=False)
    (given.out / "templates.json").write_text(listed + "\n")
