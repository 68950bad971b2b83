"use strict";
// Draws the curves of runs. The element `data` holds what `report.run_page._data` returns; a board
// replaces the numbers in `drawn.runs` and calls `drawn.show`.

const drawn = (() => {
  const { runs, n_inks } = JSON.parse(document.getElementById("data").textContent);
  const alone = runs.length === 1, place = document.getElementById("charts"), plots = new Map();
  const choices = [...document.querySelectorAll("input[name=axis]")];
  let axis = "time";

  const AXES = {
    time: { label: "training time, h:min:s", of: (run) => run.axes.elapsed_s },
    samples: { label: "samples (sequences)",
      of: (run) => run.axes.tokens.map((n) => n / run.seq_len) },
    steps: { label: "steps", of: (run) => run.axes.step },
  };
  const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600,
    43200, 86400, 172800, 604800];
  // Lines of a run, as [name, values, color]; and the column of workers, each of which has a line
  // where there is one run. A thing has one color in all charts.
  const TRAIN = "--ink-0", HELD_OUT = "--ink-1", ALL = "--ink";
  const CHARTS = [
    ["bits", "Bits per byte", (r) => [["train", r.of_run.train_bits_per_byte, TRAIN],
      ["held-out", r.of_run.val_bits_per_byte, HELD_OUT],
      ["held-out, more text", r.of_run.final_bits_per_byte, HELD_OUT], ...marks(r)]],
    ["speed", "Tokens per second", (r) => [["all", r.of_run.tokens_per_s, ALL]], "tokens_per_s"],
    ["loss", "Training loss, nats per token", (r) => [["loss", r.of_run.loss, TRAIN]]],
    ["late", "Staleness: updates by others between read and write", () => [], "staleness"],
    ["waiting", "Waiting: share of its time that a worker waits", () => [], "waiting"],
    ["memory", "Memory, bytes", (r) => [["all", r.of_run.memory_bytes, ALL]], "memory_bytes"],
    ["lost", "Lost updates: share of increments", (r) => [["lost", r.of_run.lost_update_rate, ALL]]],
  ];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
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

  // Bits per byte of compressors and counts on the held-out text, across the chart of one run.
  function marks(run) {
    if (!alone) return [];
    return Object.entries(run.marks).map(([name, bits]) =>
      [name, run.axes.elapsed_s.map(() => bits), "--soft"]);
  }

  function lines(run, k, [, , ofRun, column]) {
    const all = ofRun(run), slots = Object.keys(run.workers);
    if (column && (alone || !all.length)) {
      slots.forEach((slot, j) => all.push([slot + " " + run.workers[slot],
        run.of_workers[slot][column], "--ink-" + (2 + j % (n_inks - 2))]));
    }
    return all.filter(([, values]) => values.some((v) => v !== null)).map(([name, values, ink]) =>
      ({ kind: name, values, k, name: alone ? name : run.name + ": " + name,
        ink: css(alone ? ink : "--ink-" + k % n_inks), isMark: ink === "--soft" }));
  }

  // Draw new data; a chart is created again only if its lines have changed. One that is 0 from end
  // to end is a sentence.
  function show(anew = false) {
    const flat = [];
    for (const [order, chart] of CHARTS.entries()) {
      const [id, title] = chart;
      let all = runs.flatMap((run, k) => lines(run, k, chart));
      if (all.length && all.every((line) => line.values.every((v) => !v))) {
        flat.push(title.split(/[:,]/)[0].toLowerCase());
        all = [];
      }
      const tables = runs.map((run, k) => [AXES[axis].of(run),
        ...all.filter((line) => line.k === k).map((line) => line.values)]);
      const filled = tables.filter((table) => table.length > 1);
      // Mode 0: a line without a number does not erase that of another line at the same time.
      const modes = filled.map((table) => table.map(() => 0));
      const data = filled.length > 1 ? uPlot.join(filled, modes) : filled[0] || null;
      const key = axis + all.map((line) => line.name).join("|");
      let entry = plots.get(id);
      if (entry && (anew || !data || entry.key !== key)) {
        entry.plot.destroy();
        entry.figure.remove();
        plots.delete(id);
        entry = null;
      }
      if (!data) continue;
      if (entry) {
        entry.data = data;
        if (!entry.zoomed) entry.plot.setData(data);
      } else {
        entry = create(id, title, key, data, all);
        entry.figure.style.order = order;  // a chart may be created later than those below it
        plots.set(id, entry);
      }
      describe(entry, all);
    }
    document.getElementById("flat").textContent =
      flat.length ? `Not drawn, because always 0: ${flat.join(", ")}.` : "";
    document.getElementById("curves").hidden = !plots.size && !flat.length;
    resize();
  }

  const height = (id) => (id === "bits" ? 300 : 200);

  function create(id, title, key, data, all) {
    const box = make("div", { class: "chart", tabindex: "0", role: "img" });
    const legend = make("div", { class: "legend" });
    const figure = make("figure", { id }, make("h3", {}, title), legend, box);
    place.append(figure);
    const time = axis === "time", font = "11px system-ui, sans-serif";
    const look = { stroke: css("--soft"), grid: { stroke: css("--faint"), width: 0.5 },
      ticks: { show: false }, font };
    const entry = { figure, box, legend, key, title, data, all, zoomed: false };
    entry.plot = new uPlot({
      width: Math.max(box.clientWidth, 200), height: height(id),
      scales: { x: { time: false, range: (u, min, max) => [min, max + 0.01 * (max - min || 1)] },
        y: { range: (u, min, max) => (min === null ? [0, 1]
          : uPlot.rangeNum(min, max, 0.1, true)) } },
      legend: { show: false },
      cursor: { drag: { x: true, y: false, setScale: true }, points: { size: 6 } },
      hooks: { setSelect: [() => { entry.zoomed = true; }], setCursor: [() => read(entry)] },
      axes: [{ ...look, size: 26, label: AXES[axis].label, labelSize: 18, labelGap: 2,
        labelFont: font, ...(time ? { incrs: SECONDS } : {}), space: 60,
        values: (u, ticks) => ticks.map(time ? clock : short) },
      { ...look, size: 48, values: (u, ticks) => ticks.map(short) }],
      series: [{}, ...all.map(({ name, kind, ink, isMark }) => {
        const dots = { size: 6, fill: ink }, stars = { size: 11, width: 2, fill: css("--paper") };
        return { label: name, stroke: ink, spanGaps: true,
          width: isMark || kind === "held-out" ? 1 : 1.5,
          dash: isMark ? [2, 4] : !alone && kind === "held-out" ? [6, 4] : undefined,
          points: { show: kind.startsWith("held-out"), ...(kind === "held-out" ? dots : stars) } };
      })],
    }, data, box);
    box.addEventListener("keydown", (event) => press(event, entry));
    box.addEventListener("dblclick", () => whole(entry));
    return entry;
  }

  // The legend: the numbers at the cursor, else the newest numbers.
  function read({ plot, legend, all }) {
    if (!plot) return;
    const at = plot.cursor.idx ?? null;
    const value = (column) => (at === null ? column.findLast((v) => v != null) : column[at]);
    const x = value(plot.data[0]), where = axis === "time" ? clock(x) : `${axis} ${short(x)}`;
    legend.replaceChildren(make("span", { class: "at" }, at === null ? "newest" : where),
      ...all.map(({ name, ink }, k) => make("span", { class: "key" },
        make("i", { class: "swatch", style: `background: ${ink}` }),
        make("span", { class: "name" }, name), " ",
        make("b", {}, short(value(plot.data[k + 1]))))));
  }

  function describe(entry, all) {
    read(entry);
    const last = (values) => values.findLast((v) => v !== null);
    const words = all.map((line) => line.name + " " + short(last(line.values)));
    entry.box.setAttribute("aria-label", entry.title + ". Newest: " + words.join(", ") +
      ". Arrow keys read values, + and - zoom, 0 shows all.");
  }

  function whole(entry) {
    entry.zoomed = false;
    entry.plot.setData(entry.data);
  }

  function press(event, entry) {
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
      whole(entry);
    } else {
      return;
    }
    event.preventDefault();
  }

  function resize() {
    for (const [id, { plot, box }] of plots) {
      if (box.clientWidth > 0 && box.clientWidth !== plot.width) {
        plot.setSize({ width: box.clientWidth, height: height(id) });
      }
    }
  }

  new ResizeObserver(resize).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(true));
  for (const choice of choices) {
    choice.addEventListener("change", () => { axis = choice.value; show(); });
    if (choice.checked) axis = choice.value;
  }
  show();
  document.documentElement.dataset.drawn = String(Math.round(performance.now()));
  return { runs, show };
})();
