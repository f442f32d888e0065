"use strict";
const charts = []; // { draw, plot, mark }: made anew when the theme changes, and for paper
let shown = null; // epoch of the slider, marked in every chart
let isPrinting = false;

// Runs differ in colour and in dash, so that 28 of them can be told apart, and most without colours.
const RUN_COLOURS = 7;
const RUN_DASHES = [undefined, [8, 4], [2, 3], [9, 3, 2, 3]];
const lineOf = (index) => [`run-${index % RUN_COLOURS}`, RUN_DASHES[index % RUN_DASHES.length]];

/** A piece of the line, for a legend. */
const swatch = (variable, dash) => {
  const line = svg("line", { x1: 0, x2: 24, y1: 2, y2: 2, "stroke-width": 2.5, "stroke-dasharray": dash?.join(" ") });
  line.style.stroke = `var(--${variable})`;
  return svg("svg", { class: "swatch", viewBox: "0 0 24 4", "aria-hidden": true }, line);
};

function colour(variable) {
  const probe = el("span");
  probe.style.color = `var(--${variable})`;
  page.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

/** lines: [label, variable of the colour, values, dash]; one value per epoch of `epochs`, null where there is none. */
function chart(title, unit, epochs, lines, format, options = {}) {
  const box = el("div");
  const card = el("section", { class: "card", "aria-label": title }, el("h3", {}, title, " ", el("small", {}, unit)), box);
  const endsEarly = lines.some(([, , values]) => last(values) == null);
  box.style.setProperty("--entry", `${(endsEarly ? 20 : 11) + Math.max(...lines.map(([label]) => label.length))}ch`);
  const height = options.height ?? 210;
  const entry = { plot: null };
  entry.draw = () => {
    entry.plot?.destroy();
    const times = isPrinting ? 1.6 : 1; // for paper larger than it is shown there, and so sharper
    const dots = times * devicePixelRatio; // uPlot takes dashes in these
    const ink = colour("muted");
    const grid = { stroke: colour("line"), width: times };
    const font = `${12 * times}px system-ui, sans-serif`;
    const axis = { stroke: ink, grid, ticks: { ...grid, size: 8 * times }, gap: 4 * times, font };
    const everyEpoch = epochs.length < 12 ? { splits: () => epochs } : { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000] };
    const widest = (plot, labels) => {
      plot.ctx.font = font;
      return Math.max(40 * times, ...(labels ?? []).map((label) => plot.ctx.measureText(label).width + 16 * times));
    };
    entry.plot = new uPlot({
      width: isPrinting ? 600 : Math.max(box.clientWidth, 200),
      height: isPrinting ? 360 : height,
      scales: {
        x: { time: false, range: () => (epochs.length > 1 ? [epochs[0], last(epochs)] : [epochs[0] - 1, epochs[0] + 1]) },
        y: { range: (_, low, high) => bounds(low, high, options) },
      },
      axes: [
        { ...axis, ...everyEpoch, values: (_, ticks) => ticks.map((tick) => `${tick}`), size: 28 * times, space: 36 * times },
        { ...axis, values: (_, ticks) => ticksOf(ticks, options), size: widest, space: 30 * times, ...(options.incrs && { incrs: options.incrs }) },
      ],
      series: [
        { label: "epoch", value: (_, value) => (value == null ? "–" : `${value}`) },
        ...lines.map(([label, variable, values, dash]) => ({
          label, dash: dash?.map((length) => length * dots), stroke: colour(variable), width: 2 * times, spanGaps: true,
          points: { show: epochs.length < 12 || values.filter((value) => value != null).length < 2, size: 5 * times, fill: colour(variable) },
          value: (plot, value, _, at) => (value == null ? "–" : format(value) + (at === plot.legend.idxs?.[0] ? "" : ` at epoch ${epochs[at]}`)),
        })),
      ],
      legend: { markers: { width: 0, fill: () => "none" } },
      cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false }, focus: { prox: lines.length > 2 ? 16 : -1 } },
      focus: { alpha: 0.35 },
      hooks: {
        draw: [(plot) => {
          if (shown == null || epochs.length < 2) return;
          const x = Math.round(plot.valToPos(shown, "x", true)) + 0.5;
          const { ctx, bbox } = plot;
          ctx.save();
          ctx.strokeStyle = ink;
          ctx.lineWidth = dots;
          ctx.setLineDash([3 * dots, 3 * dots]);
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
          ctx.restore();
        }],
        setCursor: [(plot) => { if (plot.cursor.idx == null) rest(plot); }],
      },
    }, [epochs, ...lines.map(([, , values]) => values)], box);
    box.querySelectorAll(".u-marker").forEach((marker, index) => index && marker.append(swatch(lines[index - 1][1], lines[index - 1][3])));
    rest(entry.plot);
  };
  /** Without a cursor, each line's last known value up to the epoch that is shown. */
  const rest = (plot) => {
    const at = shown == null ? epochs.length - 1 : epochs.indexOf(shown);
    const known = ([, , values]) => { const found = values.findLastIndex((value, index) => index <= at && value != null); return found < 0 ? at : found; };
    plot.setLegend({ idxs: [at, ...lines.map(known)] }, false);
  };
  entry.mark = () => { entry.plot.redraw(false); rest(entry.plot); };
  entry.stop = () => { charts.splice(charts.indexOf(entry), 1); observer.disconnect(); entry.plot?.destroy(); };
  const observer = new ResizeObserver(() => {
    if (entry.plot && !isPrinting && box.clientWidth && box.clientWidth !== entry.plot.width) entry.plot.setSize({ width: box.clientWidth, height });
  });
  observer.observe(box);
  charts.push(entry);
  card.entry = entry;
  return card;
}

function bounds(low, high, { zero, one }) {
  if (low == null) return [0, 1];
  const room = 0.08 * (high - low) || 0.1 * Math.abs(high) || 1;
  return [zero ? 0 : Math.max(low - room, low >= 0 ? 0 : -Infinity), one ? Math.min(1, high + room) : high + room];
}

/** All of them with as many decimals as their distance needs. */
function ticksOf(ticks, { share }) {
  const values = ticks.map((tick) => +((share ? 100 : 1) * tick).toFixed(8));
  const decimals = Math.max(...values.map((value) => (`${value}`.split(".")[1] ?? "").length));
  return values.map((value) => value.toFixed(decimals) + (share ? " %" : ""));
}

const ACCURACY = { share: true, one: true };
const COUNT = { zero: true, incrs: [1, 2, 5, 10] };
const there = (values) => values.some((value) => value != null);

function chartsOf(run) {
  const made = [];
  const add = (title, unit, lines, format, options) => {
    const drawn = lines.map(([label, variable, name], index) => [label, variable, run.series[name], RUN_DASHES[index]]).filter(([, , values]) => there(values));
    if (drawn.length) made.push(chart(title, unit, run.epochs, drawn, format, options));
  };
  if (run.kind === "search") {
    add("Loss", "cross entropy, nats", [["upper", "accent", "upper/loss"], ["lower", "max", "lower/loss"]], fixed(3));
    add("Accuracy", "of the supernet", [["upper", "accent", "upper/accuracy"], ["lower", "max", "lower/accuracy"], ["upper, balanced", "dil", "upper/balanced_accuracy"]], percent, ACCURACY);
    if (TRUTH) {
      const truth = [["the derived cell", "accent", run.series[TRUTH]]];
      const levels = quantiles.map(([name, accuracy], index) => [name, "muted", run.epochs.map(() => accuracy), RUN_DASHES[index]]);
      made.push(chart("True test accuracy", `of the derived cell on ${ranked}, and of all cells`, run.epochs, [...truth, ...levels], percent, ACCURACY));
      add("True rank", "of the derived cell; 1 is the best", [["rank", "accent", "truth/rank"]], whole);
    }
    const perCell = (form) => CELLS.map(([cell, title], index) => [short(title), ["accent", "max"][index], form.replace("*", cell)]);
    add("Entropy of the edges", `mean, nats; ${Math.log(primitives.length).toFixed(2)} is uniform`, perCell("cells/entropy_*_nats"), fixed(4));
    add("Skip connections", "in the derived cell", perCell("cells/skip_connections_*"), fixed(0), COUNT);
  } else {
    add("Loss", "cross entropy, nats", [["train", "accent", "train/loss"], ["held out", "max", "holdout/loss"]], fixed(3));
    add("Accuracy", "of the final network", [["train", "accent", "train/accuracy"], ["held out", "max", "holdout/accuracy"], ["held out, balanced", "dil", "holdout/balanced_accuracy"]], percent, ACCURACY);
  }
  add("Time", "seconds per epoch", [["time", "accent", "speed/epoch_s"]], fixed(2), { zero: true });
  add("Speed", "images per second, mean of the epoch", [["images/s", "accent", "speed/images_per_s"]], fixed(1), { zero: true });
  return made;
}

// Paper is white, and narrower than a screen.
let theme;
addEventListener("beforeprint", () => {
  if (isPrinting) return;
  theme = root.dataset.theme;
  root.dataset.theme = "light";
  isPrinting = true;
  charts.forEach(({ draw }) => draw());
});
addEventListener("afterprint", () => {
  if (theme) root.dataset.theme = theme;
  else delete root.dataset.theme;
  isPrinting = false;
  charts.forEach(({ draw }) => draw());
});
