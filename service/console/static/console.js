// Keys, and live pages: when the server says that something has changed, the content of the page is fetched again.
"use strict";

const targets = () => [...document.querySelectorAll("[data-key]")];

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
  if (event.key === "?") return showKeys();
  const target = targets().find((each) => each.dataset.key === event.key);
  if (target && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    target.click();
  }
});

function showKeys() {
  const dialog = document.getElementById("keys");
  const list = dialog.querySelector("dl");
  list.replaceChildren();
  for (const each of targets()) {
    const term = document.createElement("dt");
    const key = document.createElement("kbd");
    key.textContent = each.dataset.key;
    term.append(key);
    const words = document.createElement("dd");
    words.textContent = each.textContent.replace(each.dataset.key + " ", "").replace(" " + each.dataset.key, "").trim();
    list.append(term, words);
  }
  dialog.showModal();
}

// A form that is sent twice would label the next pair.
for (const form of document.querySelectorAll("form[method=post]")) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "1";
  });
}

if (document.body.hasAttribute("data-live")) {
  let first = true;
  let busy = false;
  const refresh = async () => {
    if (busy || document.hidden || document.getElementById("main").contains(document.activeElement)) return;
    busy = true;
    try {
      const reply = await fetch(location.href, { headers: { accept: "text/html" } });
      if (!reply.ok) return;
      const page = new DOMParser().parseFromString(await reply.text(), "text/html");
      document.getElementById("main").replaceWith(page.getElementById("main"));
      document.title = page.title;
    } finally {
      busy = false;
    }
  };
  const events = new EventSource("/console/events");
  events.addEventListener("changed", () => {
    if (!first) refresh();
    first = false;
  });
}
