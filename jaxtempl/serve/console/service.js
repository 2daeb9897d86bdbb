// Requests to the server, with the token and with retries of temporary failures.
// Addresses are relative, so that the page works under any prefix.

import { part } from "./page.js";

const KEPT = "jaxtempl-token";
const PASSING = [0, 429, 502, 503, 504];  // 0: unreachable
const LONGEST = 15;  // seconds between two tries

/** An error answer; `wait` is the server's Retry-After in seconds, `passing` whether a retry can succeed. */
class Refusal extends Error {
  constructor(status, message, wait) {
    super(message);
    Object.assign(this, { status, wait, passing: PASSING.includes(status) });
  }
}

function request(body, signal) {
  const token = sessionStorage.getItem(KEPT);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body === undefined) return { headers, signal };
  headers["Content-Type"] = "application/json";
  return { method: "POST", headers, signal, body: JSON.stringify(body), keepalive: !signal };
}

async function fetched(path, options) {
  try {
    const answer = await fetch(path, options);
    return [answer, await answer.text()];
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refusal(0, "The server cannot be reached", 0);
  }
}

/** Returns the JSON of an answer, or null if empty; throws a Refusal, or AbortError after the signal. */
export async function ask(path, body, signal) {
  const [answer, text] = await fetched(path, request(body, signal));
  if (answer.ok) return text ? JSON.parse(text) : null;
  throw new Refusal(answer.status, said(text), Number(answer.headers.get("Retry-After")) || 0);
}

function said(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return "It could not answer";
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

/** Retries until success or a permanent error; calls `refused` with each temporary one. */
export async function patiently(attempt, { refused = () => {}, tries = Infinity, signal } = {}) {
  for (let tried = 1; ; tried += 1) {
    try {
      return await attempt();
    } catch (error) {
      if (!error.passing || tried >= tries) throw error;
      refused(error);
      const wait = error.wait || Math.min(2 ** tried / 4, LONGEST);
      await pause(wait * (1 + Math.random() / 4), signal);  // jitter, so that consoles do not retry at the same time
    }
  }
}

/** Reports an event; `at` is the same for each retry, so that the server stores it once. */
export async function report(suggestion, event, about = {}) {
  const body = { suggestion_id: suggestion, event, at: new Date().toISOString(), ...about };
  try {
    await patiently(() => ask("v1/events", body), { tries: 6 });
  } catch {
    // The advocate cannot fix it, and the conversation continues.
  }
}

/** Asks for the token unless the dialog is open; resolves to whether one was entered. */
export function askToken() {
  const dialog = part("asked");
  const again = sessionStorage.getItem(KEPT) !== null;
  if (dialog.open) return Promise.resolve(false);
  if (again) part("asked-note").textContent = "The one that was given is not among the server's; try another.";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(keepToken(dialog.returnValue)), { once: true });
  });
}

function keepToken(answer) {
  if (answer !== "token") return false;
  sessionStorage.setItem(KEPT, part("token").value.trim());
  part("token").value = "";
  return true;
}
