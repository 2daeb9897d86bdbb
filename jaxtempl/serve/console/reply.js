// The reply as it is written: from a template, which may be edited, or in the advocate's own words.

import { part } from "./page.js";
import { report } from "./service.js";
import { tellOf } from "./suggestions.js";

const PLACEHOLDER = /\{\w+\}/;

let origin = null;  // the template that the reply began as: `template`, `text`, `suggestion`, `position`
let send = () => {};

/** Begins; `sent` is given the text of each reply. */
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

/** Begins the reply anew with a template's text, its first placeholder selected. */
export function begin(from) {
  const reply = part("reply");
  reply.focus();
  reply.select();
  // The one way that leaves Ctrl+Z to the browser
  if (!document.execCommand("insertText", false, from.text)) reply.value = from.text;
  origin = from;
  const placeholder = PLACEHOLDER.exec(from.text);
  if (placeholder) reply.setSelectionRange(placeholder.index, placeholder.index + placeholder[0].length);
  reply.scrollIntoView({ block: "nearest" });
  source();
}

/** Empties the box. */
export function reset() {
  part("reply").value = "";
  source();
}

/** Says what the reply is made from; emptied, it is made from nothing. */
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
