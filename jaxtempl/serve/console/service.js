// What is asked of the server: with the token, and again where it could not answer for now.
// Addresses are relative, so that the page works under any prefix.

import { part } from "./page.js";

const KEPT = "jaxtempl-token";
const PASSING = [0, 429, 502, 503, 504];  // 0: it was not reached
const LONGEST = 15;  // seconds between two tries

/** An answer that is an error; `wait` is the seconds that the server asks for, `passing` whether waiting helps. */
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

/** The JSON of an answer, null where it is empty; throws a Refusal, or AbortError once the signal is given. */
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

/** Tries until it is done or refused for good; `refused` hears of each refusal that will pass. */
export async function patiently(attempt, { refused = () => {}, tries = Infinity, signal } = {}) {
  for (let tried = 1; ; tried += 1) {
    try {
      return await attempt();
    } catch (error) {
      if (!error.passing || tried >= tries) throw error;
      refused(error);
      const wait = error.wait || Math.min(2 ** tried / 4, LONGEST);
      await pause(wait * (1 + Math.random() / 4), signal);  // not all consoles in the same moment
    }
  }
}

/** Reports what was done with suggestions; the same `at` at each try, so that the server counts it once. */
export async function report(suggestion, event, about = {}) {
  const body = { suggestion_id: suggestion, event, at: new Date().toISOString(), ...about };
  try {
    await patiently(() => ask("v1/events", body), { tries: 6 });
  } catch {
    // An advocate can do nothing about it, and the conversation goes on.
  }
}

/** Asks for the token, unless it is being asked for; true once there is one, false where none was given. */
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
