// The reply box: a template's text, which may be edited, or free text.

import { part } from "./page.js";
import { report } from "./service.js";
import { tellOf } from "./suggestions.js";

const PLACEHOLDER = /\{\w+\}/;

let origin = null;  // the template that the reply started from: `template`, `text`, `suggestion`, `position`
let send = () => {};

/** Attaches the events; calls `sent` with the text of each reply. */
export function start(sent) {
  send = sent;
  part("composer").addEventListener("submit", submit);
  part("reply").addEventListener("input", source);
  part("reply").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.altKey || event.isComposing) return;
    event.preventDefault();
    part("composer").requestSubmit();
  });
}

/** Replaces the reply by a template's text, and selects its first placeholder. */
export function begin(from) {
  const reply = part("reply");
  reply.focus();
  reply.select();
  // The only way that preserves undo (Ctrl+Z)
  if (!document.execCommand("insertText", false, from.text)) reply.value = from.text;
  origin = from;
  const placeholder = PLACEHOLDER.exec(from.text);
  if (placeholder) reply.setSelectionRange(placeholder.index, placeholder.index + placeholder[0].length);
  reply.scrollIntoView({ block: "nearest" });
  source();
}

/** Empties the reply box. */
export function reset() {
  part("reply").value = "";
  source();
}

/** Shows the origin of the reply; an empty reply has none. */
function source() {
  const text = part("reply").value;
  if (!text) origin = null;
  const edited = origin && text !== origin.text ? ", edited" : "";
  part("source").textContent = origin ? `From ${origin.template}${edited}` : text && "Your own words";
}

function submit(event) {
  event.preventDefault();
  const text = part("reply").value.trim();
  if (!text) return part("reply").focus();
  tellHow(text);
  reset();
  send(text);
}

function tellHow(text) {
  if (!origin) return tellOf("freehand");
  const { template, position, suggestion } = origin;
  if (suggestion && text !== origin.text.trim()) report(suggestion, "edited", { template, position });
}
