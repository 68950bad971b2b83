"use strict";
// Draws runs: curves, staleness, workers over time, samples, events. The element `data` holds what
// `watching.record.Record.to_json` returns; a board fetches the same and adds to it as it grows.

const runView = (() => {
  const AXES = {
    time: { label: "training time", of: (run) => run.axes.elapsed_s },
    samples: { label: "samples (sequences)",
      of: (run) => run.axes.tokens.map((n) => n / run.seq_len) },
    updates: { label: "updates", of: (run) => run.axes.updates },
  };
  const MB = 1e6;
  // Lines of one run: [name, values, dashed]. Those of workers are drawn where there is one run.
  const CHARTS = [
    ["bits", "Bits per byte", (r) => [["train", r.of_run.train_bits_per_byte],
      ["held-out", r.of_run.val_bits_per_byte, true],
      ...(r.of_run.final_bits_per_byte.some((v) => v !== null)
        ? [["held-out, more text", r.of_run.final_bits_per_byte, true]] : [])]],
    ["loss", "Training loss, nats per token", (r) => [["loss", r.of_run.loss]]],
    ["speed", "Tokens per second", (r) => [["all", r.of_run.tokens_per_s]], "tokens_per_s"],
    ["late", "Staleness: updates by others between read and write", () => [], "staleness"],
    ["lost", "Lost updates, share of increments", (r) => [["lost", r.of_run.lost_update_rate]]],
    ["memory", "Memory, MB", (r) => [["all", scaled(r.of_run.memory_bytes)]], "memory_bytes"],
    ["waiting", "Share of time that a worker waits for others", () => [], "waiting"],
  ];
  const scaled = (values) => values.map((v) => (v === null ? null : v / MB));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (tag, attributes = {}, ...children) => {
    const svg = ["svg", "rect", "line", "text", "g", "title"].includes(tag) && attributes.svg !== 0;
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name !== "svg") node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  };
  const clock = (s) => {
    if (s === null || !isFinite(s)) return "";
    const [h, m] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
    const two = (n) => String(n).padStart(2, "0");
    return (h ? h + ":" : "") + two(m) + ":" + two(Math.floor(s) % 60);
  };
  const short = (v) => {
    if (v === null || v === undefined) return "-";
    const size = Math.abs(v);
    if (size >= 1e6) return +(v / 1e6).toPrecision(4) + "M";
    if (size >= 1e4) return +(v / 1e3).toPrecision(4) + "k";
    return String(+v.toPrecision(4));
  };

  function lines(run, chart, alone) {
    const [, , ofRun, column] = chart;
    const found = ofRun(run).map(([name, values, dashed]) => ({ name, values, dashed }));
    if (column && (alone || !found.length)) {
      for (const slot of Object.keys(run.of_workers)) {
        const values = run.of_workers[slot][column];
        found.push({ name: slot + " " + run.workers[slot],
          values: column === "memory_bytes" ? scaled(values) : values });
      }
    }
    return found.filter((line) => line.values.some((v) => v !== null));
  }

  class Charts {
    constructor(place, inks) {
      this.place = place;
      this.inks = inks;
      this.axis = "time";
      this.plots = new Map();
      this.wait = new ResizeObserver(() => this.resize());
      this.wait.observe(place);
      dark.addEventListener("change", () => this.draw(this.runs, true));
    }

    // Draw what is new; a chart is made anew only where its lines are others than before.
    draw(runs, anew = false) {
      this.runs = runs;
      const alone = runs.length === 1;
      for (const chart of CHARTS) {
        const drawn = runs.flatMap((run, k) => lines(run, chart, alone).map((line) =>
          ({ ...line, k, name: alone ? line.name : run.name + ": " + line.name })));
        const tables = runs.map((run, k) => [AXES[this.axis].of(run),
          ...drawn.filter((line) => line.k === k).map((line) => line.values)]);
        const filled = tables.filter((table) => table.length > 1);
        // Mode 0: a line without a number does not erase that of another line at the same time.
        const modes = filled.map((table) => table.map(() => 0));
        const data = filled.length > 1 ? uPlot.join(filled, modes) : filled[0] || null;
        const key = this.axis + drawn.map((line) => line.name).join("|");
        const old = this.plots.get(chart[0]);
        if (old && !anew && data && old.key === key) {
          old.data = data;
          if (!old.zoomed) old.plot.setData(data);
          this.describe(old, drawn);
          continue;
        }
        if (old) { old.plot.destroy(); old.figure.remove(); this.plots.delete(chart[0]); }
        if (data) this.make(chart, key, data, drawn, alone);
      }
      for (const [id] of CHARTS) {  // in order, whichever was made last
        if (this.plots.has(id)) this.place.append(this.plots.get(id).figure);
      }
    }

    make([id, title], key, data, drawn, alone) {
      const box = make("div", { class: "chart", tabindex: "0", role: "img" });
      const figure = make("figure", { id }, make("h3", {}, title), box);
      this.place.append(figure);
      const inks = this.inks[dark.matches ? "dark" : "light"];
      const [ink, faint] = [css("--ink"), css("--faint")];
      const time = this.axis === "time";
      const axis = { stroke: ink, grid: { stroke: faint, width: 0.5 }, ticks: { stroke: faint } };
      const entry = { figure, box, key, title, data, zoomed: false };
      const plot = new uPlot({
        width: Math.max(box.clientWidth, 200), height: 230, scales: { x: { time: false },
          y: { range: (u, min, max) => (min === null || (min === 0 && max === 0) ? [0, 0.01]
            : uPlot.rangeNum(min, max, 0.1, true)) } },
        legend: { live: true },
        cursor: { drag: { x: true, y: false, setScale: true } },
        hooks: { setSelect: [() => { entry.zoomed = true; }] },
        axes: [{ ...axis, label: AXES[this.axis].label, labelSize: 18, labelFont: "11px system-ui",
          values: (u, ticks) => ticks.map(time ? clock : short) },
        { ...axis, size: 56, values: (u, ticks) => ticks.map(short) }],
        series: [{ label: AXES[this.axis].label, value: (u, v) => (time ? clock(v) : short(v)) },
          ...drawn.map((line, k) => ({
            label: line.name, stroke: inks[(alone ? k : line.k) % inks.length], width: 1.5,
            dash: line.dashed ? [6, 4] : undefined, spanGaps: true,
            points: { show: Boolean(line.dashed), size: 4 },
            value: (u, v) => short(v) }))],
      }, data, box);
      entry.plot = plot;
      this.plots.set(id, entry);
      this.describe(entry, drawn);
      box.addEventListener("keydown", (event) => this.key(event, entry));
      box.addEventListener("dblclick", () => this.whole(entry));
    }

    describe(entry, drawn) {
      const last = (values) => values.findLast((v) => v !== null);
      const words = drawn.map((line) => line.name + " " + short(last(line.values)));
      entry.box.setAttribute("aria-label", entry.title + ". Newest: " + words.join(", ") +
        ". Arrow keys read values, + and - zoom, 0 shows all.");
    }

    whole(entry) {
      entry.zoomed = false;
      entry.plot.setData(entry.data);
    }

    key(event, entry) {
      const { plot } = entry, xs = plot.data[0];
      const at = plot.cursor.idx ?? xs.length - 1;
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -xs.length,
        End: xs.length };
      if (event.key in steps) {
        const to = Math.min(Math.max(at + steps[event.key], 0), xs.length - 1);
        plot.setCursor({ left: plot.valToPos(xs[to], "x"), top: 1 });
      } else if (event.key === "+" || event.key === "-") {
        const { min, max } = plot.scales.x, half = (max - min) * (event.key === "+" ? 0.25 : 1);
        const middle = plot.cursor.idx === null ? (min + max) / 2 : xs[at];
        entry.zoomed = true;
        plot.setScale("x", { min: Math.max(middle - half, xs[0]),
          max: Math.min(middle + half, xs[xs.length - 1]) });
      } else if (event.key === "0" || event.key === "Escape") {
        this.whole(entry);
      } else {
        return;
      }
      event.preventDefault();
    }

    resize() {
      for (const { plot, box } of this.plots.values()) {
        if (box.clientWidth > 0 && box.clientWidth !== plot.width) {
          plot.setSize({ width: box.clientWidth, height: 230 });
        }
      }
    }
  }

  // Share of steps by their staleness, P-1 marked; the largest are drawn as one bar.
  function histogram(counts, others, title) {
    const most = 24, width = 420, height = 150, base = height - 22, left = 34;
    const lags = Object.keys(counts).map(Number);
    const total = lags.reduce((sum, lag) => sum + counts[lag], 0);
    if (!total) return null;
    const end = Math.min(Math.max(...lags, others + 1), most);
    const bars = new Array(end + 1).fill(0);
    for (const lag of lags) bars[Math.min(lag, end)] += counts[lag] / total;
    const wide = (width - left - 4) / bars.length, top = Math.max(...bars);
    const folded = Math.max(...lags) > end;
    const mean = lags.reduce((sum, lag) => sum + lag * counts[lag], 0) / total;
    const node = make("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img",
      "aria-label": `${title}: mean ${short(mean)}, largest ${Math.max(...lags)}; ` +
        `P-1 is ${others}` });
    bars.forEach((share, lag) => {
      const tall = (base - 16) * share / top, x = left + lag * wide;
      node.append(make("rect", { x: x + 1, y: base - tall, width: Math.max(wide - 2, 1),
        height: tall, class: "running" },
      make("title", {}, `${lag}: ${(100 * share).toFixed(1)} % of steps`)));
      if (bars.length < 14 || lag % 4 === 0 || lag === end) {
        node.append(make("text", { x: x + wide / 2, y: height - 8, "text-anchor": "middle" },
          lag + (folded && lag === end ? "+" : "")));
      }
    });
    node.append(make("line", { x1: left, x2: width, y1: base, y2: base, class: "line" }),
      make("text", { x: 0, y: 22 }, (100 * top).toFixed(0) + " %"));
    if (others <= end) {
      const x = left + (others + 0.5) * wide, far = others > end / 2;
      node.append(make("line", { x1: x, x2: x, y1: 4, y2: base, class: "mark" }),
        make("text", { x: x + (far ? -4 : 4), y: 12, "text-anchor": far ? "end" : "start" },
          "P-1 = " + others));
    }
    return make("figure", {}, make("h3", {}, title + " ", make("small", {}, "mean " + short(mean))),
      node);
  }

  const MARKS = { checkpoint: "checkpoint", sample: "sample", ended: "end of a command" };

  // A row per worker: when its process was up, who took its place; events below.
  function timeline(run) {
    const slots = Object.keys(run.workers).map(Number), width = 900, left = 120, tall = 20;
    const times = [...run.spans.map((span) => span[2]), ...run.axes.elapsed_s.slice(-1)];
    const end = Math.max(...times, 1), x = (s) => left + (width - left - 10) * Math.min(s / end, 1);
    const height = slots.length * (tall + 6) + 44;
    const node = make("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img",
      "aria-label": `Workers over ${clock(end)}: ${run.spans.length} spans, listed below` });
    slots.forEach((slot, row) => {
      const y = 4 + row * (tall + 6);
      node.append(make("text", { x: 0, y: y + 14 }, `${slot} ${run.workers[slot]}`.slice(0, 18)));
      for (const [, from, to, state, pid] of run.spans.filter((span) => span[0] === slot)) {
        node.append(make("rect", { x: x(from), y, width: Math.max(x(to) - x(from), 2), height: tall,
          class: state },
        make("title", {}, `${state}, process ${pid}, ${clock(from)} to ${clock(to)}`)));
      }
    });
    const y = slots.length * (tall + 6) + 4;
    for (const [time, , kind, text] of run.events) {
      if (time !== null && kind in MARKS) {
        node.append(make("line", { x1: x(time), x2: x(time), y1: 2, y2: y + 8, class: "mark",
          "stroke-dasharray": kind === "sample" ? "2 3" : kind === "ended" ? "6 3" : "none" },
        make("title", {}, `${MARKS[kind]} at ${clock(time)}: ${text.slice(0, 80)}`)));
      }
    }
    node.append(make("line", { x1: left, x2: width - 10, y1: y + 8, y2: y + 8, class: "line" }));
    for (let k = 0; k <= 4; k++) {
      node.append(make("text", { x: x(end * k / 4), y: y + 26,
        "text-anchor": k === 4 ? "end" : "middle" }, clock(end * k / 4)));
    }
    const rows = run.spans.slice(-500).map((span) => [`${span[0]} ${run.workers[span[0]]}`, span[3],
      span[4], clock(span[1]), clock(span[2])]);
    return [make("div", { class: "scroll" }, node), make("details", {},
      make("summary", {}, "the same as a table"),
      table(["worker", "state", "process", "from", "to"], rows))];
  }

  function table(header, rows, name = "") {
    const cells = (row, tag) => make("tr", {}, ...row.map((text) =>
      make(tag, { class: "t" }, String(text ?? ""))));
    return make("div", { class: "scroll" }, make("table", { class: name },
      make("thead", {}, cells(header, "th")),
      make("tbody", {}, ...rows.map((row) => cells(row, "td")))));
  }

  const when = ([time, step]) =>
    (time === null ? "" : clock(time) + ", ") + (step === null ? "" : "step " + step);

  function samples(run, most = 40) {
    const texts = run.events.filter((event) => event[2] === "sample").slice(-most);
    return texts.length ? make("ol", { class: "samples" }, ...texts.map((event) =>
      make("li", {}, make("span", { class: "when" }, when(event)), " ", event[3]))) : null;
  }

  function events(run, most = 300) {
    const told = run.events.filter((event) => event[2] !== "sample").slice(-most);
    return told.length ? table(["time", "step", "what", ""],
      told.map(([time, step, kind, text]) => [clock(time), step, kind, text]), "events") : null;
  }

  // Everything of one run but its curves, into the elements of its section.
  function details(section, run) {
    const fill = (name, ...nodes) => {
      const place = section.querySelector(`[data-part="${name}"]`);
      const shown = nodes.filter((node) => node !== null);
      place.replaceChildren(...(shown.length ? shown : [make("p", { class: "note" },
        place.dataset.empty || "nothing was recorded")]));
    };
    const slots = Object.keys(run.staleness), all = {};
    for (const slot of slots) {
      for (const [lag, n] of Object.entries(run.staleness[slot])) all[lag] = (all[lag] || 0) + n;
    }
    fill("staleness", histogram(all, run.others, "all workers"), ...(slots.length > 1
      ? slots.map((s) => histogram(run.staleness[s], run.others, s + " " + run.workers[s])) : []));
    const open = section.querySelector('[data-part="workers"] details')?.open;
    fill("workers", ...(slots.length ? timeline(run) : []));
    if (open) section.querySelector('[data-part="workers"] details').open = true;
    fill("samples", samples(run));
    fill("events", events(run));
  }

  // The choice of the axis, and every chart and section of the page.
  function start(runs, inks) {
    const charts = new Charts(document.getElementById("charts"), inks);
    const show = () => {
      charts.draw(runs);
      runs.forEach((run, k) => details(document.getElementById("run-" + k), run));
    };
    for (const choice of document.querySelectorAll("input[name=axis]")) {
      choice.addEventListener("change", () => { charts.axis = choice.value; charts.draw(runs); });
      if (choice.checked) charts.axis = choice.value;
    }
    show();
    document.documentElement.dataset.drawn = String(Math.round(performance.now()));
    return show;
  }

  return { start, charts: CHARTS };
})();

{
  const block = document.getElementById("data");
  if (block) {
    const { runs, inks } = JSON.parse(block.textContent);
    runView.start(runs, inks);
  }
}
