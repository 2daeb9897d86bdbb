// The panel of suggestions: requested for each message, shown, picked and dismissed.

import { made, part, percent, status, tell } from "./page.js";
import { ask, patiently, report } from "./service.js";

const BUSY = "The service is busy; suggestions will come with the next message.";
const HOLDOUT = "holdout";  // the pair gets no suggestions; the search stays
const AWAY = "The server cannot be reached; trying again.";

let running = null;  // the current request, at most one
let answer = null;  // answer to the newest context, or null
let offered = [];  // its suggestions; empty once dismissed
let take = () => {};

/** Attaches the events; calls `taken` with the picked template, its suggestion id and its position. */
export function start(taken) {
  take = taken;
  part("dismiss").addEventListener("click", dismiss);
}

/** Requests suggestions and aborts the previous request; returns the answer, or null if superseded. */
export async function refresh(context) {
  running?.abort();
  const mine = (running = new AbortController());
  part("suggestions").setAttribute("aria-busy", "true");
  try {
    const [got, elapsed] = await patiently(() => timed(context, mine.signal), { refused, signal: mine.signal });
    show(got, elapsed);
    return got;
  } catch (error) {
    if (mine.signal.aborted || error.status === 409) return null;  // superseded by a newer request
    clear("");
    throw error;
  }
}

async function timed(context, signal) {
  const began = performance.now();
  const got = await ask("v1/suggest", context, signal);
  return [got, performance.now() - began];
}

function refused(refusal) {
  clear(refusal.status ? BUSY : AWAY);
}

/** Aborts the request, and shows a sentence instead of suggestions. */
export function stop(sentence) {
  running?.abort();
  clear(sentence);
}

function clear(sentence) {
  answer = null;
  put([], sentence);
}

/** Shows suggestions and a sentence. */
function put(suggestions, sentence) {
  offered = suggestions;
  part("suggestions").replaceChildren(...suggestions.map(row));
  part("suggestions").removeAttribute("aria-busy");
  part("dismiss").hidden = suggestions.length === 0;
  status(sentence);
}

function show(got, elapsed) {
  answer = got;
  const [first] = got.suggestions;
  const held = got.no_suggestion === HOLDOUT;
  put(got.suggestions, first || held ? "" : `No suggestion: ${got.no_suggestion}`);
  part("heading").textContent = held ? "Templates" : "Suggestions";
  part("model").textContent = `model ${got.model_version.slice(0, 12)}`;
  part("latency").textContent = `service ${got.latency_ms.toFixed(1)} ms, round trip ${elapsed.toFixed(0)} ms`;
  part("window").textContent = held ? "" : read(got);
  report(got.suggestion_id, "opened");  // the reply box is always there, so the clock starts here, in every arm
  if (!first) return;
  tell(`${offered.length} suggestions, first: ${first.template}, ${percent(first.probability)} percent`);
  report(got.suggestion_id, "shown");
}

function read({ tokens, dropped_messages: dropped }) {
  const left = dropped === 1 ? ", 1 older message left out" : dropped ? `, ${dropped} older messages left out` : "";
  return `${tokens} tokens read${left}`;
}

function row({ template, text, probability }, index) {
  const item = made("li");
  const button = made("button", "suggestion");
  const bar = made("span", "bar");
  bar.append(made("span"));
  bar.firstChild.style.width = `${100 * probability}%`;
  button.type = "button";
  button.setAttribute("aria-keyshortcuts", `${index + 1} Alt+${index + 1}`);
  button.append(made("kbd", "", index + 1), " ", made("span", "text", text), " ", made("span", "id", template), " ");
  button.append(made("span", "number", `${percent(probability)}%`), bar);
  button.addEventListener("click", () => pick(index + 1));
  item.append(button);
  return item;
}

/** Reports an event of the current suggestions, if any, and returns their id. */
export function tellOf(event, about) {
  if (answer) report(answer.suggestion_id, event, about);
  return answer?.suggestion_id;
}

/** Takes the suggestion at a position from 1, if there is one. */
export function pick(position) {
  const suggestion = offered[position - 1];
  if (!suggestion) return;
  const { template, text } = suggestion;
  take({ template, text, position, suggestion: tellOf("picked", { template, position }) });
}

/** Dismisses the suggestions. */
export function dismiss() {
  if (!offered.length) return;
  tellOf("dismissed");
  const focused = document.activeElement;
  const goes = focused === part("dismiss") || part("suggestions").contains(focused);
  put([], "Dismissed; the next message brings new ones.");
  if (goes) part("heading").focus();
}
