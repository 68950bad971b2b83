"use strict";
// Draws the curves of runs. The element `data` holds what `report.run_page.data` returns; a board
// fetches the page again for newer data.

const runView = (() => {
  const AXES = {
    time: { label: "training time, h:min:s", of: (run) => run.axes.elapsed_s },
    samples: { label: "samples (sequences)",
      of: (run) => run.axes.tokens.map((n) => n / run.seq_len) },
    updates: { label: "updates", of: (run) => run.axes.updates },
  };
  const MB = 1e6;
  const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600,
    43200, 86400, 172800, 604800];
  // Lines of one run: [name, values, thing], and the column of workers, whose lines are drawn
  // where there is one run. A thing has one color in all charts: see `ink`.
  const CHARTS = [
    ["bits", "Bits per byte", (r) => [["train", r.of_run.train_bits_per_byte, "train"],
      ["held-out", r.of_run.val_bits_per_byte, "held-out"],
      ["held-out, more text", r.of_run.final_bits_per_byte, "larger"]]],
    ["speed", "Tokens per second", (r) => [["all", r.of_run.tokens_per_s, "all"]], "tokens_per_s"],
    ["loss", "Training loss, nats per token", (r) => [["loss", r.of_run.loss, "train"]]],
    ["late", "Staleness: updates by others between read and write", () => [], "staleness"],
    ["waiting", "Waiting: share of its time that a worker waits", () => [], "waiting"],
    ["memory", "Memory, MB", (r) => [["all", scaled(r.of_run.memory_bytes), "all"]],
      "memory_bytes"],
    ["lost", "Lost updates: share of increments",
      (r) => [["lost", r.of_run.lost_update_rate, "all"]]],
  ];
  const scaled = (values) => values.map((v) => (v === null ? null : v / MB));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      node.setAttribute(name, value);
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

  // The color of a thing: train, held-out and more of it, all workers together, or the worker of a slot.
  function ink(inks, run, thing) {
    const named = { train: inks[0], "held-out": inks[1], larger: inks[1], all: css("--ink") };
    const others = inks.slice(2), slots = Object.keys(run.workers);
    return named[thing] ?? others[slots.indexOf(String(thing)) % others.length];
  }

  function lines(run, chart, alone) {
    const [, , ofRun, column] = chart;
    const found = ofRun(run).map(([name, values, thing]) => ({ name, values, thing }));
    if (column && (alone || !found.length)) {
      for (const slot of Object.keys(run.of_workers)) {
        const values = run.of_workers[slot][column];
        found.push({ name: slot + " " + run.workers[slot], thing: slot,
          values: column === "memory_bytes" ? scaled(values) : values });
      }
    }
    return found.filter((line) => line.values.some((v) => v !== null));
  }

  class Charts {
    constructor(place, nInks) {
      this.place = place;
      this.nInks = nInks;
      this.axis = "time";
      this.plots = new Map();
      this.wait = new ResizeObserver(() => this.resize());
      this.wait.observe(place);
    }

    // Draw new data; a chart is created again only if its lines have changed. One
    // that is 0 from end to end is a sentence.
    draw(runs, anew = false) {
      this.runs = runs;
      const alone = runs.length === 1, flat = [];
      for (const chart of CHARTS) {
        let drawn = runs.flatMap((run, k) => lines(run, chart, alone).map((line) =>
          ({ ...line, k, run, name: alone ? line.name : run.name + ": " + line.name })));
        if (drawn.length && drawn.every((line) => line.values.every((v) => !v))) {
          flat.push(chart[1].split(/[:,]/)[0].toLowerCase());
          drawn = [];
        }
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
      for (const [id] of CHARTS) {  // in this order, not in the order of creation
        if (this.plots.has(id)) this.place.append(this.plots.get(id).figure);
      }
      document.getElementById("flat").textContent =
        flat.length ? `Not drawn, because always 0: ${flat.join(", ")}.` : "";
      document.getElementById("curves").hidden = !this.plots.size && !flat.length;
      this.resize();
    }

    make([id, title], key, data, drawn, alone) {
      const box = make("div", { class: "chart", tabindex: "0", role: "img" });
      const legend = make("div", { class: "legend" });
      const figure = make("figure", { id }, make("h3", {}, title), legend, box);
      this.place.append(figure);
      const inks = Array.from({ length: this.nInks }, (_, k) => css("--ink-" + k));
      const [line, faint] = [css("--soft"), css("--faint")];
      const time = this.axis === "time";
      const axis = { stroke: line, grid: { stroke: faint, width: 0.5 }, ticks: { show: false },
        font: "11px system-ui, sans-serif" };
      const colors = drawn.map((each) =>
        (alone ? ink(inks, each.run, each.thing) : inks[each.k % inks.length]));
      const entry = { figure, box, legend, key, title, data, colors, zoomed: false };
      const plot = new uPlot({
        width: Math.max(box.clientWidth, 200), height: this.height(id),
        scales: { x: { time: false, range: (u, min, max) => [min, max + 0.01 * (max - min || 1)] },
          y: { range: (u, min, max) => (min === null ? [0, 1]
          : uPlot.rangeNum(min, max, 0.1, true)) } },
        legend: { show: false },
        cursor: { drag: { x: true, y: false, setScale: true }, points: { size: 6 } },
        hooks: { setSelect: [() => { entry.zoomed = true; }],
          setCursor: [() => this.read(entry)],
          draw: id === "bits" && alone ? [(u) => marks(u, drawn[0].run.marks, line)] : [] },
        axes: [{ ...axis, size: 26, label: AXES[this.axis].label, labelSize: 18, labelGap: 2,
          labelFont: "11px system-ui, sans-serif", ...(time ? { incrs: SECONDS } : {}), space: 60,
          values: (u, ticks) => ticks.map(time ? clock : short) },
        { ...axis, size: 48, values: (u, ticks) => ticks.map(short) }],
        series: [{}, ...drawn.map((each, k) => ({
          label: each.name, stroke: colors[k], spanGaps: true,
          width: each.thing === "held-out" ? 1 : 1.5,
          dash: !alone && each.thing === "held-out" ? [6, 4] : undefined,
          points: { show: ["held-out", "larger"].includes(each.thing),
            ...(each.thing === "larger" ? { size: 11, width: 2, fill: css("--paper") }
              : { size: 6, fill: colors[k] }) } }))],
      }, data, box);
      entry.plot = plot;
      this.plots.set(id, entry);
      this.describe(entry, drawn);
      box.addEventListener("keydown", (event) => this.key(event, entry));
      box.addEventListener("dblclick", () => this.whole(entry));
    }

    height(id) {
      return id === "bits" ? 300 : 200;
    }

    // The legend: the numbers at the cursor, else the newest numbers.
    read({ plot, legend, colors }) {
      if (!plot) return;
      const at = plot.cursor.idx ?? null;
      const value = (column) => (at === null ? column.findLast((v) => v != null) : column[at]);
      const x = value(plot.data[0]);
      const where = this.axis === "time" ? clock(x) : `${this.axis} ${short(x)}`;
      legend.replaceChildren(make("span", { class: "at" }, at === null ? "newest" : where),
        ...plot.series.slice(1).map((line, k) => make("span", { class: "key" },
          make("i", { class: "swatch", style: `background: ${colors[k]}` }),
          make("span", { class: "name" }, line.label), " ",
          make("b", {}, short(value(plot.data[k + 1]))))));
    }

    describe(entry, drawn) {
      this.read(entry);
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
      for (const [id, { plot, box }] of this.plots) {
        if (box.clientWidth > 0 && box.clientWidth !== plot.width) {
          plot.setSize({ width: box.clientWidth, height: this.height(id) });
        }
      }
    }
  }

  // Bits per byte of compressors and counts on the held-out text, as lines across the chart.
  function marks(u, bits, color) {
    const { ctx, bbox } = u, dpr = devicePixelRatio;
    ctx.save();
    ctx.font = `${11 * dpr}px system-ui, sans-serif`;
    ctx.fillStyle = ctx.strokeStyle = color;
    ctx.lineWidth = dpr;
    ctx.setLineDash([2 * dpr, 4 * dpr]);
    ctx.textAlign = "left";
    for (const [name, value] of Object.entries(bits)) {
      if (value < u.scales.y.min || value > u.scales.y.max) continue;
      const y = u.valToPos(value, "y", true);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      ctx.fillText(`${name} ${short(value)}`, bbox.left + 4 * dpr, y - 4 * dpr);
    }
    ctx.restore();
  }

  // The choice of the axis, and every chart.
  function start(runs, nInks) {
    const charts = new Charts(document.getElementById("charts"), nInks);
    dark.addEventListener("change", () => charts.draw(runs, true));
    for (const choice of document.querySelectorAll("input[name=axis]")) {
      choice.addEventListener("change", () => { charts.axis = choice.value; charts.draw(runs); });
      if (choice.checked) charts.axis = choice.value;
    }
    charts.draw(runs);
    document.documentElement.dataset.drawn = String(Math.round(performance.now()));
    return () => charts.draw(runs);
  }

  return { start };
})();

// What is drawn: the runs, and `show`, which draws them again; a board replaces their numbers.
const drawn = (() => {
  const { runs, n_inks } = JSON.parse(document.getElementById("data").textContent);
  return { runs, show: runView.start(runs, n_inks) };
})();
