// The forms of the reference: what is typed becomes a request to this box, and its answer is shown as text.
"use strict";

for (const form of document.querySelectorAll("form[data-try]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form, form.querySelector("pre"));
  });
}

async function send(form, shown) {
  const { method, path, media } = form.dataset;
  const typed = (where) => [...form.querySelectorAll(`[data-in="${where}"]`)].filter((each) => each.value);
  const filled = typed("path").reduce((text, each) => text.replace(`{${each.name}}`, encodeURIComponent(each.value)), path);
  const query = new URLSearchParams();
  for (const each of typed("query")) {
    // metadata=pr=42 is what a form has for metadata[pr]=42.
    const [key, ...rest] = each.value.split("=");
    if (each.name === "metadata") query.append(`metadata[${key}]`, rest.join("="));
    else query.append(each.name, each.value);
  }
  const token = document.getElementById("token").value.trim();
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const body = typed("body")[0]?.value;
  if (body) headers["Content-Type"] = media === "*/*" ? "application/json" : media;
  shown.hidden = false;
  shown.textContent = "…";
  try {
    const answer = await fetch(filled + (query.size ? `?${query}` : ""), { method, headers, body, cache: "no-store", credentials: "omit" });
    shown.textContent = `${answer.status} ${answer.statusText}\n${told(answer.headers)}\n${pretty(await answer.text())}`;
  } catch (fault) {
    shown.textContent = `No answer: ${fault.message}`;
  }
}

function told(headers) {
  return ["content-type", "location", "link"].filter((name) => headers.has(name)).map((name) => `${name}: ${headers.get(name)}\n`).join("");
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
