// The few things that every part of the page does to it. Text goes in as text, never as markup.

export const part = (id) => document.getElementById(id);

/** A new element with a class and a text. */
export function made(name, kind = "", text = "") {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  element.textContent = text;
  return element;
}

/** Says a sentence to those who hear the page. */
export function tell(sentence) {
  part("told").textContent = sentence;
}

/** Says a sentence to all; the same one again is not heard again. */
export function status(sentence) {
  if (part("status").textContent !== sentence) part("status").textContent = sentence;
}

export const percent = (probability) => (probability < 0.01 ? "<1" : String(Math.round(100 * probability)));
