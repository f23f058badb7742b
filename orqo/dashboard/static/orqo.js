// What the pages cannot do without a script: follow what changes, and copy. Everything else works without it.
"use strict";

const HIDDEN_FACTOR = 10;
const RETRY_MS = 3000;

// ── live parts: a page names an address, when to ask it again, and the parts that its answers replace ──────────────

for (const region of document.querySelectorAll("[data-live]")) follow(region);

function follow(region) {
  const shown = {};
  let etag = region.dataset.etag ? `"${region.dataset.etag}"` : "";
  let nextMs = Number(region.dataset.next) || 0;
  let timer = 0;

  const plan = () => {
    clearTimeout(timer);
    if (nextMs) timer = setTimeout(ask, document.hidden ? nextMs * HIDDEN_FACTOR : nextMs);
  };

  async function ask() {
    try {
      const answer = await fetch(region.dataset.live, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" });
      if (answer.status === 401) return location.reload();
      if (answer.status === 200) {
        const { parts, next_ms } = await answer.json();
        etag = answer.headers.get("ETag") || "";
        nextMs = next_ms || 0;
        for (const [name, html] of Object.entries(parts)) {
          const part = region.querySelector(`[data-part="${name}"]`);
          if (shown[name] !== html && part) replace(part, html);
          shown[name] = html;
        }
      }
    } catch {
      // The box may be restarting: ask again.
      nextMs = Math.max(nextMs, RETRY_MS);
    }
    plan();
  }

  document.addEventListener("visibilitychange", () => { if (!document.hidden && nextMs) ask(); });
  plan();
}

// What somebody opened or closed stays so, what was typed stays, and the keyboard stays where it is. What is open by itself
// has data-open.
function replace(part, html) {
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  prepare(fresh.content);
  // The page itself was the first answer: what is the same is left alone, with the cursor in it.
  if (fresh.innerHTML === part.innerHTML) return;
  const typed = new Map([...part.querySelectorAll(TYPED)].map((each) => [field(each), each.value]));
  const changed = [...part.querySelectorAll("details[id]")].filter((each) => each.open !== ("open" in each.dataset));
  const states = new Map(changed.map((each) => [each.id, each.open]));
  const focused = part.contains(document.activeElement) ? address(part, document.activeElement) : null;
  part.replaceChildren(fresh.content);
  for (const [id, open] of states) {
    const details = document.getElementById(id);
    if (details) details.open = open;
  }
  for (const each of part.querySelectorAll(TYPED)) if (typed.has(field(each))) each.value = typed.get(field(each));
  if (focused) find(part, focused)?.focus({ preventScroll: true });
}

const TYPED = "textarea, select, input:not([type=hidden], [type=checkbox], [type=radio])";

function field(element) {
  return `${element.form?.action} ${element.name}`;
}

const FOCUSABLE = "a, button, summary, input, select, textarea, [tabindex]";

function address(part, element) {
  const details = element.closest("details[id]");
  const within = details || part;
  return { details: details && details.id, index: [...within.querySelectorAll(FOCUSABLE)].indexOf(element) };
}

function find(part, { details, index }) {
  const within = details ? document.getElementById(details) : part;
  return within && within.querySelectorAll(FOCUSABLE)[index];
}

// ── copy buttons ───────────────────────────────────────────────────────────────────────────────────────────────────

function prepare(root) {
  for (const button of root.querySelectorAll("[data-copy]")) button.hidden = false;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) {
    await copy(document.getElementById(button.dataset.copy));
    const label = button.firstChild;
    label.data = "Copied";
    setTimeout(() => { label.data = "Copy"; }, 1600);
    return;
  }
  const link = event.target.closest("[data-line]");
  if (link) {
    event.preventDefault();
    goToLine(document.getElementById(link.dataset.of || "source"), Number(link.dataset.line));
  }
  // A question that is open closes when something else is chosen.
  for (const open of document.querySelectorAll(".sure[open]")) if (!open.contains(event.target)) open.open = false;
});

document.addEventListener("keydown", (event) => {
  const open = event.key === "Escape" && document.querySelector(".sure[open]");
  if (open) {
    open.open = false;
    open.querySelector("summary").focus();
  }
});

async function copy(element) {
  if (navigator.clipboard) {
    try {
      return await navigator.clipboard.writeText(element.textContent);
    } catch {
      // Refused: the old way is left.
    }
  }
  // Over plain http from another machine there is no clipboard but this.
  const range = document.createRange();
  range.selectNodeContents(element);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  document.execCommand("copy");
}

// ── the editor ─────────────────────────────────────────────────────────────────────────────────────────────────────

function goToLine(area, number) {
  const lines = area.value.split("\n");
  const start = lines.slice(0, number - 1).join("\n").length + (number > 1 ? 1 : 0);
  area.focus();
  area.setSelectionRange(start, start + (lines[number - 1] || "").length);
  area.scrollTop = Math.max(0, (number - 4) * (area.scrollHeight / lines.length));
}

const editor = document.querySelector("textarea#source");
const position = document.querySelector("[data-position]");
if (editor && position) {
  const tell = () => {
    const before = editor.value.slice(0, editor.selectionStart).split("\n");
    position.textContent = `line ${before.length}, column ${before.at(-1).length + 1}`;
  };
  position.hidden = false;
  for (const kind of ["keyup", "click", "input", "focus"]) editor.addEventListener(kind, tell);
  tell();
}

// A shared link to a stage opens it.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
}
addEventListener("hashchange", openTarget);
openTarget();
prepare(document);
// A form that was refused: to the first field that is wrong. Once all is loaded, for the address's # takes the focus away.
addEventListener("load", () => document.querySelector("main [aria-invalid]")?.focus());
