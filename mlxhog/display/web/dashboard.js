"use strict";
// A page that follows a run: it fetches itself again, and replaces what has changed.

(() => {
  const EVERY_MS = 1000;
  const place = (id) => document.getElementById(id);
  const tell = (text) => { place("told").textContent = text; };
  let tag = "";

  // The token is in the link from the terminal, after #; browsers do not send that part.
  if (location.hash.length > 1) {
    sessionStorage.setItem("token", location.hash.slice(1));
    history.replaceState(null, "", location.pathname);
  }
  const token = sessionStorage.getItem("token");

  function replace(page) {
    for (const fresh of page.querySelectorAll("[data-live]")) {
      const old = place(fresh.id);
      if (old.innerHTML === fresh.innerHTML) continue;  // keep the reader's selection
      const open = [...old.querySelectorAll("details")].map((one) => one.open);
      old.replaceChildren(...fresh.childNodes);
      old.querySelectorAll("details").forEach((one, k) => { one.open = open[k] ?? one.open; });
    }
    Object.assign(drawn.runs[0], JSON.parse(page.getElementById("data").textContent).runs[0]);
    drawn.show();
    name();
  }

  function name() {
    const state = place("state-0").textContent;
    document.title = state + ": " + drawn.runs[0].name;
    place("asks").hidden = !token || state !== "running";
  }

  async function look() {
    try {
      const answer = await fetch(location.pathname,
        { cache: "no-store", headers: { "If-None-Match": tag } });
      if (answer.status === 200) {
        replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
        tag = answer.headers.get("ETag");
      } else if (answer.status !== 304) {
        throw new Error(answer.status);
      }
      place("gone").hidden = true;
    } catch {
      place("gone").hidden = false;
    }
    setTimeout(look, EVERY_MS);
  }

  async function ask(button) {
    if (button.dataset.sure && !confirm(button.dataset.sure)) return;
    button.disabled = true;
    tell(button.textContent + " ...");
    try {
      const answer = await fetch("ask/" + button.dataset.ask,
        { method: "POST", headers: { "X-Mlxhog-Token": token } });
      const reply = await answer.json();
      tell(answer.ok ? reply.message : reply.error);
    } catch (error) {
      tell(String(error));
    }
    button.disabled = false;
  }

  for (const button of document.querySelectorAll("button[data-ask]")) {
    button.addEventListener("click", () => ask(button));
  }
  name();
  look();
})();
