// The advocate's console: a conversation, its suggestions, and the keyboard shortcuts.

import { made, part, status } from "./page.js";
import * as reply from "./reply.js";
import * as search from "./search.js";
import { ask, askToken, patiently } from "./service.js";
import * as suggestions from "./suggestions.js";

const NAMES = { customer: "Customer", advocate: "Advocate", system: "System" };
const BEGINNING = "Suggestions come with the first message.";

let version = "";  // version of the newest answer, or of the production model before the first
let samples = [];
let talk = { id: "", messages: [], waiting: [], replied: false };  // `waiting`: messages of the sample case still to come

/** Starts a conversation, optionally with the messages of a sample case. */
function begin(waiting) {
  const random = crypto.getRandomValues(new Uint32Array(4));  // randomUUID is missing where there is no TLS
  const id = `console-${[...random].map((number) => number.toString(36)).join("")}`;
  talk = { id, messages: [], waiting: [...waiting], replied: false };
  part("log").replaceChildren(made("p", "note", "Choose a sample case, or write what the customer says."));
  suggestions.stop(BEGINNING);
  reply.reset();
  next();
}

function add(role, text) {
  if (!talk.messages.length) part("log").replaceChildren();
  talk.messages.push({ role, text });
  const message = made("div", `message ${role}`);
  const words = made("p", "", text);
  words.dir = "auto";
  message.append(made("span", "who", NAMES[role]), words);
  part("log").append(message);
  part("log").scrollTop = part("log").scrollHeight;
  refresh();
}

async function refresh() {
  const context = { case_id: talk.id, advocate_id: "console", messages: talk.messages };
  await withToken(async () => {
    const answer = await suggestions.refresh(context);
    if (!answer || answer.model_version === version) return;
    version = answer.model_version;
    await fetchAll();  // another model, perhaps other templates
  });
}

/** Runs an attempt, asks for a token if the server requires one, and shows permanent errors. */
async function withToken(attempt) {
  try {
    await attempt();
  } catch (error) {
    if (error.status !== 401) status(`The server refused: ${error.message}`);
    else if (await askToken()) await enter();
    else status("The server asks for a token; the next message asks for it again.");
  }
}

/** Reloads with the new token. */
async function enter() {
  await load();
  if (talk.messages.length) await refresh();
}

/** Adds the next message of the sample case; skips its advocate's messages after a reply from here. */
function next() {
  while (talk.replied && talk.waiting[0]?.role === "advocate") talk.waiting.shift();
  const message = talk.waiting.shift();
  part("next").setAttribute("aria-disabled", String(!talk.waiting.length));  // `disabled` would lose the focus
  if (!message) return;
  talk.replied = false;
  add(message.role, message.text);
}

function sent(text) {
  talk.replied = true;
  add("advocate", text);
  part("heading").focus();  // where the number keys work
}

function customerSays(event) {
  event.preventDefault();
  const text = part("says").value.trim();
  if (!text) return;
  part("says").value = "";
  add("customer", text);
  part("heading").focus();
}

function found({ template, text }) {
  reply.begin({ template, text, suggestion: suggestions.tellOf("searched", { template }) });
}

const KEYS = {
  ...Object.fromEntries([1, 2, 3, 4, 5].map((position) => [position, () => suggestions.pick(position)])),
  n: next,
  r: () => part("reply").focus(),
  c: () => part("says").focus(),
  "/": () => part("search").focus(),
  "?": () => part("keys").showModal(),
};

/** Returns the key, independent of Alt and the keyboard layout. */
function named({ key, code, altKey }) {
  const digit = /^Digit([1-5])$/.exec(code);
  if (digit) return digit[1];
  const letter = /^Key([A-Z])$/.exec(code);
  return (altKey && letter ? letter[1] : key).toLowerCase();
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.isComposing || event.repeat) return;
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") return suggestions.dismiss();
  const writing = event.target.matches("input, textarea");
  const act = KEYS[named(event)];
  if (!act || (!event.altKey && (writing || !part("single").checked))) return;
  event.preventDefault();
  act();
}

async function load() {
  await withToken(() => patiently(fetchAll, { refused: () => status("The server is not ready; trying again.") }));
}

async function fetchAll() {
  const [model, templates, cases] = await Promise.all([ask("v1/model"), ask("v1/templates"), ask("console/cases")]);
  version ||= model.version;
  part("model").textContent = `model ${version.slice(0, 12)}`;
  search.among(templates);
  samples = cases;
  const { value } = part("cases");
  part("cases").replaceChildren(part("cases").options[0], ...cases.map(choice));
  part("cases").value = value;
  if (!talk.messages.length) status(BEGINNING);
}

function choice({ case_id: id, messages }, index) {
  const option = made("option", "", `${messages[0].text.slice(0, 60)} (${id})`);
  option.value = index;
  return option;
}

const chosen = () => begin(samples[part("cases").value]?.messages ?? []);

part("customer").addEventListener("submit", customerSays);
part("cases").addEventListener("change", chosen);
part("next").addEventListener("click", next);
part("restart").addEventListener("click", chosen);
part("help").addEventListener("click", KEYS["?"]);
document.addEventListener("keydown", pressed);
suggestions.start(reply.begin);
search.start(found);
reply.start(sent);
begin([]);
load();
