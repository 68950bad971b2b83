"use strict";
// A page that follows a run: it fetches itself again, and replaces what has changed.

(() => {
  const EVERY_MS = 1000;
  const place = (id) => document.getElementById(id);
  let tag = "", silent = false;
  let status = "";  // the answer to the last request, or its progress
  const write = (text) => { place("told").textContent = text; };
  const tell = (text) => write(status = text);

  function replace(page) {
    for (const fresh of page.querySelectorAll("[data-live]")) {
      const old = place(fresh.id);
      if (old.innerHTML === fresh.innerHTML) continue;  // keep the reader's selection
      const open = [...old.querySelectorAll("details")].map((one) => one.open);
      old.replaceChildren(...fresh.childNodes);
      old.querySelectorAll("details").forEach((one, k) => { one.open = open[k] ?? one.open; });
    }
    const [run] = JSON.parse(page.getElementById("data").textContent).runs;
    Object.assign(drawn.runs[0], run);
    drawn.show();
  }

  function name() {
    const state = place("state-0").textContent;
    document.title = state + ": " + drawn.runs[0].name;
    place("asks").hidden = state !== "running";
  }

  async function look() {
    try {
      const answer = await fetch(location.pathname,
        { cache: "no-store", headers: { "If-None-Match": tag } });
      if (answer.status === 200) {
        replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
        tag = answer.headers.get("ETag");
        name();
      } else if (answer.status !== 304) {
        throw new Error(answer.status);
      }
      if (silent) write(status);
      silent = false;
    } catch {
      silent = true;
      write("The server of this page (mlxhog board) does not answer; trying again.");
    }
    setTimeout(look, EVERY_MS);
  }

  // The token is in the link from the terminal, after #; browsers do not send that part.
  function token() {
    if (location.hash.length > 1) {
      sessionStorage.setItem("token", location.hash.slice(1));
      history.replaceState(null, "", location.pathname);
    }
    return place("token").value || sessionStorage.getItem("token") || "";
  }

  async function ask(button) {
    if (button.dataset.sure && !confirm(button.dataset.sure)) return;
    button.disabled = true;
    tell(button.textContent + " ...");
    try {
      const answer = await fetch("ask/" + button.dataset.ask, {
        method: "POST", headers: { "X-Mlxhog-Token": token() } });
      const reply = await answer.json();
      tell(answer.ok ? reply.message : reply.error);
      if (answer.status === 403) place("token").focus();
    } catch (error) {
      tell(String(error));
    }
    button.disabled = false;
  }

  if (token()) place("token-field").hidden = true;
  for (const button of document.querySelectorAll("button[data-ask]")) {
    button.addEventListener("click", () => ask(button));
  }
  name();
  look();
})();
