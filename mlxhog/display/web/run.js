"use strict";
// Draws the curves of runs. The element `data` holds what `report.run_page._data` returns; a dashboard
// replaces the numbers in `drawn.runs` and calls `drawn.show`.

const drawn = (() => {
  const { runs, n_inks } = JSON.parse(document.getElementById("data").textContent);
  const alone = runs.length === 1, place = document.getElementById("charts"), charts = new Map();
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
  const TRAIN = "--ink-0", VALIDATION = "--ink-1", ALL = "--ink", MARK = "--soft";
  const CHARTS = [
    ["bits", "Bits per byte", (r) => [["train", r.of_run.train_bits_per_byte, TRAIN],
      ["validation", r.of_run.val_bits_per_byte, VALIDATION],
      ["validation, more text", r.of_run.final_bits_per_byte, VALIDATION], ...baselines(r)]],
    ["speed", "Tokens per second", (r) => [["all", r.of_run.tokens_per_s, ALL]], "tokens_per_s"],
    ["loss", "Training loss, nats per token", (r) => [["loss", r.of_run.loss, TRAIN]]],
    ["late", "Staleness: updates by others between read and write", () => [], "staleness"],
    ["waiting", "Waiting: share of its time that a worker waits", () => [], "waiting"],
    ["memory", "Memory, bytes", (r) => [["all", r.of_run.memory_bytes, ALL]], "memory_bytes"],
    ["lr", "Learning rate", (r) => [["lr", r.of_run.lr, ALL]]],
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
  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
  const short = (v) => (v === null || v === undefined ? "-" : compact.format(v));
  const newest = (values) => values.findLast((v) => v !== null && v !== undefined);
  const height = (id) => (id === "bits" ? 300 : 200);

  // Bits per byte of compressors and counts on the validation text, across the chart of one run.
  function baselines(run) {
    return Object.entries(alone ? run.baselines : {}).map(([name, bits]) =>
      [name, run.axes.elapsed_s.map(() => bits), MARK]);
  }

  function lines(run, k, ofRun, column) {
    const all = ofRun(run), slots = Object.keys(run.workers);
    if (column && (alone || !all.length)) {
      slots.forEach((slot, j) => all.push([slot + " " + run.workers[slot],
        run.of_workers[slot][column], "--ink-" + (2 + j % (n_inks - 2))]));
    }
    return all.filter(([, values]) => values.some((v) => v !== null)).map(([name, values, ink]) =>
      ({ kind: name, values, k, name: alone ? name : run.name + ": " + name,
        ink: css(alone ? ink : "--ink-" + k % n_inks), isMark: ink === MARK }));
  }

  // Draw the charts; one that somebody reads, or has zoomed into, stays as it is unless `anew`.
  function show(anew = false) {
    const curves = document.getElementById("curves");
    curves.hidden = false;  // else a chart has no width
    for (const [order, [id, title, ofRun, column]] of CHARTS.entries()) {
      const old = charts.get(id);
      if (old && !anew && (old.isZoomed || old.figure.matches(":hover, :has(:focus-visible)"))) {
        continue;
      }
      if (old) {
        old.plot.destroy();
        old.figure.remove();
        charts.delete(id);
      }
      const all = runs.flatMap((run, k) => lines(run, k, ofRun, column));
      if (!all.length) continue;
      const tables = runs.map((run, k) => [AXES[axis].of(run),
        ...all.filter((line) => line.k === k).map((line) => line.values)])
        .filter((table) => table.length > 1);
      // Mode 0: a line without a number does not erase that of another line at the same time.
      const modes = tables.map((table) => table.map(() => 0));
      const data = tables.length > 1 ? uPlot.join(tables, modes) : tables[0];
      charts.set(id, create(id, title, order, data, all));
    }
    curves.hidden = !charts.size;
  }

  function create(id, title, order, data, all) {
    const words = all.map((line) => line.name + " " + short(newest(line.values)));
    const box = make("div", { class: "chart", tabindex: "0", role: "img",
      "aria-label": `${title}. Newest: ${words.join(", ")}. Arrow keys read values.` });
    const legend = make("div", { class: "legend" });
    const figure = make("figure", { id, style: `order: ${order}` },
      make("h3", {}, title), legend, box);
    place.append(figure);
    const font = "11px system-ui, sans-serif", format = axis === "time" ? clock : short;
    const look = { stroke: css("--soft"), grid: { stroke: css("--faint"), width: 0.5 },
      ticks: { show: false }, font };
    const chart = { figure, box, isZoomed: false };
    chart.plot = new uPlot({
      width: Math.max(box.clientWidth, 200), height: height(id),
      scales: { x: { time: false, range: (u, min, max) => [min, max + 0.01 * (max - min || 1)] },
        y: { range: (u, min, max) => (min === null ? [0, 1]
          : uPlot.rangeNum(min, max, 0.1, true)) } },
      legend: { show: false },
      cursor: { drag: { x: true, y: false, setScale: true }, points: { size: 6 } },
      hooks: { setSelect: [() => { chart.isZoomed = true; }],
        draw: [(plot) => name(plot, all)], setCursor: [(plot) => read(plot, legend, all)] },
      axes: [{ ...look, size: 26, label: AXES[axis].label, labelSize: 18, labelGap: 2,
        labelFont: font, ...(axis === "time" ? { incrs: SECONDS } : {}), space: 60,
        values: (u, ticks) => ticks.map(format) },
      { ...look, size: 48, values: (u, ticks) => ticks.map(short) }],
      series: [{}, ...all.map(({ name, kind, values, ink, isMark }) => {
        const dots = { size: 6, fill: ink }, stars = { size: 11, width: 2, fill: css("--paper") };
        const isPoint = values.filter((v) => v !== null).length === 1;  // a line without ink
        return { label: name, stroke: ink, spanGaps: true,
          width: isMark || kind === "validation" ? 1 : 1.5,
          dash: isMark ? [2, 4] : !alone && kind === "validation" ? [6, 4] : undefined,
          points: { show: isPoint || kind.startsWith("validation"),
            ...(kind.startsWith("validation,") ? stars : dots) } };
      })],
    }, data, box);
    read(chart.plot, legend, all);
    box.addEventListener("dblclick", () => { chart.isZoomed = false; });  // uPlot shows the whole
    box.addEventListener("keydown", (event) => move(event, chart.plot));
    return chart;
  }

  // Write the names of baselines at their lines, beside each other where these are near.
  function name({ ctx, bbox, valToPos }, all) {
    Object.assign(ctx, { textAlign: "right", font: `${11 * devicePixelRatio}px system-ui, sans-serif` });
    let right = bbox.left + bbox.width;
    for (const line of all.filter(({ isMark }) => isMark)) {
      const at = valToPos(newest(line.values), "y", true);
      ctx.fillStyle = line.ink;
      if (at > bbox.top && at < bbox.top + bbox.height) ctx.fillText(line.name, right, at - 4);
      right -= ctx.measureText(line.name + "    ").width;
    }
  }

  // The legend: the numbers at the cursor, else the newest numbers.
  function read({ cursor, data }, legend, all) {
    const at = cursor.idx ?? null;
    const value = (column) => (at === null ? newest(column) : column[at]);
    const x = value(data[0]), where = axis === "time" ? clock(x) : `${axis} ${short(x)}`;
    legend.replaceChildren(make("span", { class: "at" }, at === null ? "newest" : where),
      ...all.map(({ name, ink }, k) => make("span", { class: "key" },
        make("i", { class: "swatch", style: `background: ${ink}` }),
        make("span", { class: "name" }, name), " ",
        make("b", {}, short(value(data[k + 1]))))));
  }

  function move(event, plot) {
    const xs = plot.data[0], at = plot.cursor.idx ?? xs.length - 1;
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -xs.length, End: xs.length };
    if (!(event.key in steps)) return;
    const to = Math.min(Math.max(at + steps[event.key], 0), xs.length - 1);
    plot.setCursor({ left: plot.valToPos(xs[to], "x"), top: 1 });
    event.preventDefault();
  }

  new ResizeObserver(() => {
    for (const [id, { plot, box }] of charts) {
      if (box.clientWidth > 0 && box.clientWidth !== plot.width) {
        plot.setSize({ width: box.clientWidth, height: height(id) });
      }
    }
  }).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(true));
  for (const choice of choices) {
    choice.addEventListener("change", () => { axis = choice.value; show(true); });
    if (choice.checked) axis = choice.value;
  }
  show();
  document.documentElement.dataset.drawn = String(Math.round(performance.now()));
  return { runs, show };
})();
