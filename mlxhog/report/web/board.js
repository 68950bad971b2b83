"use strict";
// A page that follows a run: first it reads `/data`, then the additions from `/events`.

(() => {
  const MOST_ROWS = 6000;  // with more rows the curves are fetched again, in fewer points
  const place = (id) => document.getElementById(id);
  let run = null, show = null, source = null, silent = false;
  let status = "";  // the answer to the last request, or its progress
  const write = (text) => { place("told").textContent = text; };
  const tell = (text) => write(status = text);

  function add(lines) {
    const before = run.axes.elapsed_s.length, more = lines.axes.elapsed_s.length;
    const extend = (old, fresh) => {
      for (const name of Object.keys(fresh)) {
        old[name] = (old[name] || new Array(before).fill(null)).concat(fresh[name]);
      }
    };
    extend(run.axes, lines.axes);
    extend(run.of_run, lines.of_run);
    for (const slot of Object.keys(lines.of_workers)) {
      run.of_workers[slot] ??= {};
      extend(run.of_workers[slot], lines.of_workers[slot]);
    }
    run.rows = lines.rows;
    return before + more;
  }

  function rows(id, values) {
    const heads = [...place(id).parentElement.querySelectorAll("thead th")];
    place(id).replaceChildren(...values.map((texts) => {
      const row = document.createElement("tr");
      texts.forEach((text, k) => {
        const cell = document.createElement(k ? "td" : "th");
        cell.className = "t";
        if (!k) cell.scope = "row";
        cell.textContent = text;
        if (heads.length) cell.dataset.head = heads[k].textContent;  // a narrow window hides the heads
        row.append(cell);
      });
      return row;
    }));
  }

  function now(news) {
    place("state-0").textContent = news.state;
    document.title = news.state + ": " + run.name;
    run.tiles = news.tiles;
    run.marks = news.marks;
    place("notes").replaceChildren(...news.notes.map((note) => {
      const line = document.createElement("p");
      line.className = "partial";
      line.textContent = note;
      return line;
    }));
    rows("facts", Object.entries(news.facts));
    rows("table", news.table);
    place("now").hidden = !news.table.length;
    place("asks").hidden = news.state !== "running";
  }

  async function fetchAll() {
    const answer = await fetch("data");
    if (!answer.ok) throw new Error(await answer.text());
    const data = await answer.json();
    const fresh = data.runs[0];
    if (run) Object.keys(run).forEach((key) => delete run[key]);
    run = Object.assign(run || {}, fresh);
    now(data.now);
    if (show) show();
    else show = runView.start([run], data.inks);
    listen();
  }

  function listen() {
    if (source) source.close();
    const at = new URLSearchParams({ rows: run.rows, starts: run.starts, told: run.told });
    source = new EventSource("events?" + at);
    source.onmessage = (event) => {
      const news = JSON.parse(event.data);
      if (news.reset || add(news.lines) > MOST_ROWS) {
        source.close();
        fetchAll().catch(lost);
        return;
      }
      Object.assign(run, { staleness: news.staleness, spans: news.spans, workers: news.workers,
        others: news.others, told: news.told, events: run.events.concat(news.events) });
      now(news.now);
      show();
      heard();
    };
    source.onerror = () => {
      source.close();
      lost();
    };
  }

  function lost() {
    silent = true;
    write("The server of this page (mlxhog board) does not answer; trying again.");
    setTimeout(() => fetchAll().then(heard).catch(lost), 2000);
  }

  function heard() {
    if (silent) write(status);
    silent = false;
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
  fetchAll().catch(lost);
})();
