// Search over all active templates: a combobox with a list box, after the ARIA Authoring Practices.

import { made, part, tell } from "./page.js";

const MOST = 50;

let templates = [];
let found = [];
let at = -1;  // the option that Enter takes
let take = () => {};

/** Attaches the events; calls `taken` with the chosen template. */
export function start(taken) {
  take = taken;
  part("search").addEventListener("input", update);
  part("search").addEventListener("focus", update);
  part("search").addEventListener("blur", close);
  part("search").addEventListener("keydown", steer);
  part("found").addEventListener("mousedown", (event) => event.preventDefault());  // the focus stays where it is
}

/** Sets the templates to search. */
export function among(all) {
  templates = all.filter((template) => template.active);
}

function matches(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const holds = ({ id, text }) => words.every((word) => `${id} ${text}`.toLowerCase().includes(word));
  const named = ({ id }) => words.some((word) => id.toLowerCase().includes(word));
  const fitting = templates.filter(holds);
  return [...fitting.filter(named), ...fitting.filter((template) => !named(template))].slice(0, MOST);
}

function update() {
  const query = part("search").value.trim();
  if (!query) return close();
  found = matches(query);
  part("found").replaceChildren(...(found.length ? found.map(option) : [nothing()]));
  part("found").hidden = false;
  part("search").setAttribute("aria-expanded", "true");
  tell(found.length === 1 ? "1 template" : `${found.length === MOST ? "first " : ""}${found.length} templates`);
  go(found.length ? 0 : -1);
}

function nothing() {
  const item = made("li", "note", "No template has these words");
  item.setAttribute("role", "option");
  item.setAttribute("aria-disabled", "true");
  return item;
}

function option(template, index) {
  const item = made("li");
  item.id = `found-${index}`;
  item.setAttribute("role", "option");
  item.append(made("span", "text", template.text), " ", made("span", "id", template.id));
  item.addEventListener("click", () => choose(index));
  return item;
}

/** Selects the option that Enter takes. */
function go(to) {
  at = to;
  [...part("found").children].forEach((item, index) => item.setAttribute("aria-selected", String(index === at)));
  const current = part("found").children[at];
  if (!current) return part("search").removeAttribute("aria-activedescendant");
  part("search").setAttribute("aria-activedescendant", current.id);
  current.scrollIntoView({ block: "nearest" });
}

function steer(event) {
  const last = found.length - 1;
  const keys = {
    ArrowDown: () => go(at === last ? 0 : at + 1),
    ArrowUp: () => go(at <= 0 ? last : at - 1),
    Enter: () => choose(at),
    Escape: () => ((part("search").value = ""), close()),
  };
  if (part("found").hidden || event.isComposing || event.altKey || !(event.key in keys)) return;
  event.preventDefault();
  event.stopPropagation();  // Escape closes the list and leaves the suggestions
  keys[event.key]();
}

function close() {
  found = [];
  part("found").hidden = true;
  part("found").replaceChildren();
  part("search").setAttribute("aria-expanded", "false");
  part("search").removeAttribute("aria-activedescendant");
}

function choose(index) {
  const template = found[index];
  if (!template) return;
  part("search").value = "";
  close();
  take({ template: template.id, text: template.text });
}
