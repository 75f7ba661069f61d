// The page that corrects labels: buttons and keys send decisions, the page shows what was written.
"use strict";

const problem = document.getElementById("problem");
const items = [...document.querySelectorAll(".item")];

function complain(error) {
  problem.hidden = false;
  problem.textContent = error.message;
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The application does not answer. Is the process still running?");
  }
  if (response.ok) return response.json();
  const found = await response.json().catch(() => ({ error: `${response.status} ${response.statusText}` }));
  throw new Error(found.error);
}

async function decide(item, decision, label = "") {
  if (decision === "accept") label = item.dataset.suggested;
  if (decision === "accept" && !label) return;
  const body = { sample: Number(item.dataset.sample), list: item.dataset.list, decision, label };
  try {
    const headers = { "Content-Type": "application/json" };
    const made = await call("/corrections", { method: "POST", headers, body: JSON.stringify(body) });
    problem.hidden = true;
    const words = !made.label ? "Left out" : made.label === made.was ? "Label kept" : `${made.was} → ${made.label}`;
    item.querySelector(".decision").textContent = words;
    item.classList.add("done");
    move(item, 1);
  } catch (error) {
    complain(error);
  }
}

function move(item, step) {
  const next = items[items.indexOf(item) + step];
  if (!next) return;
  for (const one of items) one.tabIndex = one === next ? 0 : -1;
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

const KEYS = {
  a: (item) => decide(item, "accept"),
  l: (item) => decide(item, "keep"),
  x: (item) => decide(item, "leave_out"),
  c: (item) => item.querySelector("input").focus(),
  j: (item) => move(item, 1),
  k: (item) => move(item, -1),
  ArrowDown: (item) => move(item, 1),
  ArrowUp: (item) => move(item, -1),
};

for (const item of items) {
  item.addEventListener("keydown", (event) => {
    const hasModifier = event.ctrlKey || event.metaKey || event.altKey;
    if (event.target.matches("input") && event.key === "Escape") item.focus();
    if (event.target !== item || hasModifier || !(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key](item);
  });
  for (const button of item.querySelectorAll("[data-decision]")) {
    button.addEventListener("click", () => decide(item, button.dataset.decision));
  }
  item.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    decide(item, "correct", event.target.elements.label.value);
  });
}

async function wait() {
  try {
    const state = await call("/correct/state");
    if (state.is_ready || state.problem) location.reload();
    else setTimeout(wait, 500);
  } catch (error) {
    complain(error);
  }
}

if (document.querySelector("[data-waits]")) wait();
