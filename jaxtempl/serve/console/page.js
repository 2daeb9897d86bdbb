// Helpers for the page's elements. Text is inserted as text, never as markup.

export const part = (id) => document.getElementById(id);

/** Returns a new element with a class and a text. */
export function made(name, kind = "", text = "") {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  element.textContent = text;
  return element;
}

/** Announces a sentence to screen readers. */
export function tell(sentence) {
  part("told").textContent = sentence;
}

/** Shows and announces a sentence, unless it is already shown. */
export function status(sentence) {
  if (part("status").textContent !== sentence) part("status").textContent = sentence;
}

export const percent = (probability) => (probability < 0.01 ? "<1" : String(Math.round(100 * probability)));
