"use strict";
// All that comes from a run goes through `append` as text, or into attributes that cannot run.
const { runs, primitives, published } = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const root = document.documentElement;
const CELLS = [["normal", "Normal cell"], ["reduce", "Reduction cell"]];

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null));
  return node;
}
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const whole = (value) => (value == null ? "–" : value.toLocaleString("en-US"));
const millions = (value) => (value < 1e9 ? (value / 1e6).toPrecision(3) : (value / 1e6).toFixed(0));
const percent = (value) => (value == null ? "–" : `${(100 * value).toFixed(1)} %`);
const fixed = (digits) => (value) => (value == null ? "–" : value.toFixed(digits));
const last = (values) => values[values.length - 1];
const kind = (primitive) => `kind-${primitive.split("_")[0]}`;
const words = (primitive) => primitive.replaceAll("_", " ").replace(/(\d)x(\d)/g, "$1×$2");
const short = (primitive) => words(primitive).replace(/ (pool|conv|connect)/, "").replace(/×\d/, "");
const state = (index) => (index < 2 ? `c(k−${2 - index})` : `${index - 2}`);
const when = (date) => date.replace("T", " ").replace(/(:\d\d):\d\d(\.\d+)?/, "$1").replace("+00:00", " UTC");
function duration(seconds) {
  const total = Math.round(seconds);
  const two = (value) => String(value).padStart(2, "0");
  return `${Math.floor(total / 3600)}:${two(Math.floor(total / 60) % 60)}:${two(total % 60)}`;
}

// ---- charts ----

const charts = []; // { draw, plot }: made anew when the theme changes
let shown = null; // epoch of the slider, marked in every chart

function colour(variable) {
  const probe = el("span");
  probe.style.color = `var(--${variable})`;
  page.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

/** lines: [label, variable of the colour, values, dash]; a value an epoch of `epochs`, null where there is none. */
function chart(title, unit, epochs, lines, format, options = {}) {
  const box = el("div");
  const card = el("section", { class: "card", "aria-label": title }, el("h3", {}, title, " ", el("small", {}, unit)), box);
  const entry = { plot: null, draw: () => draw() };
  function draw() {
    entry.plot?.destroy();
    const ink = colour("muted");
    const grid = { stroke: colour("line"), width: 1 };
    const font = "12px system-ui, sans-serif";
    const axis = { stroke: ink, grid, ticks: grid, font };
    const whole = epochs.length < 12 ? { splits: () => epochs } : { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000] };
    entry.plot = new uPlot({
      width: Math.max(box.clientWidth, 200),
      height: options.height ?? 210,
      scales: {
        x: { time: false, range: () => (epochs.length > 1 ? [epochs[0], last(epochs)] : [epochs[0] - 1, epochs[0] + 1]) },
        y: { range: (_, low, high) => bounds(low, high, options) },
      },
      axes: [
        { ...axis, ...whole, values: (_, ticks) => ticks.map((tick) => `${tick}`), size: 28, space: 36 },
        { ...axis, values: (_, ticks) => ticks.map(options.tick ?? ((tick) => `${+tick.toFixed(4)}`)), size: 52, ...(options.incrs && { incrs: options.incrs }) },
      ],
      series: [
        { label: "epoch", value: (_, value) => (value == null ? "–" : `${value}`) },
        ...lines.map(([label, variable, , dash]) => ({
          label, dash, stroke: colour(variable), width: 2, spanGaps: true,
          points: { show: epochs.length < 12, size: 5, fill: colour(variable) },
          value: (_, value) => (value == null ? "–" : format(value)),
        })),
      ],
      legend: { markers: { width: 3, fill: () => "transparent", dash: (plot, index) => (plot.series[index].dash ? "dashed" : "solid") } },
      cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
      hooks: {
        draw: [(plot) => {
          if (shown == null || epochs.length < 2) return;
          const x = Math.round(plot.valToPos(shown, "x", true)) + 0.5;
          const { ctx, bbox } = plot;
          ctx.save();
          ctx.strokeStyle = ink;
          ctx.setLineDash([3, 3]);
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
          ctx.restore();
        }],
        setCursor: [(plot) => { if (plot.cursor.idx == null) rest(plot); }],
      },
    }, [epochs, ...lines.map(([, , values]) => values)], box);
    rest(entry.plot);
  }
  const rest = (plot) => plot.setLegend({ idx: shown == null ? epochs.length - 1 : epochs.indexOf(shown) }, false);
  entry.mark = () => { entry.plot.redraw(false); rest(entry.plot); };
  entry.stop = () => { charts.splice(charts.indexOf(entry), 1); observer.disconnect(); entry.plot?.destroy(); };
  const observer = new ResizeObserver(() => {
    if (entry.plot && box.clientWidth && box.clientWidth !== entry.plot.width) {
      entry.plot.setSize({ width: box.clientWidth, height: options.height ?? 210 });
    }
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

const ACCURACY = { tick: (tick) => `${+(100 * tick).toFixed(2)} %`, one: true };
const COUNT = { zero: true, incrs: [1, 2, 5, 10] };
const there = (values) => values.some((value) => value != null);

function chartsOf(run) {
  const made = [];
  const add = (title, unit, lines, format, options) => {
    const drawn = lines.map(([label, variable, name]) => [label, variable, run.series[name]]).filter(([, , values]) => there(values));
    if (drawn.length) made.push(chart(title, unit, run.epochs, drawn, format, options));
  };
  if (run.kind === "search") {
    add("Loss", "cross entropy, nats", [["upper", "accent", "upper/loss"], ["lower", "max", "lower/loss"]], fixed(3));
    add("Accuracy", "of the supernet", [["upper", "accent", "upper/accuracy"], ["lower", "max", "lower/accuracy"]], percent, ACCURACY);
    add("Entropy of the edges", "mean, nats; 2.08 is uniform", [["normal", "accent", "cells/entropy_normal_nats"], ["reduction", "max", "cells/entropy_reduce_nats"]], fixed(4));
    add("Skip connections", "in the derived cell", [["normal", "accent", "cells/skip_connections_normal"], ["reduction", "max", "cells/skip_connections_reduce"]], fixed(0), COUNT);
  } else {
    add("Loss", "cross entropy, nats", [["train", "accent", "train/loss"], ["held out", "max", "holdout/loss"]], fixed(3));
    add("Accuracy", "of the final network", [["train", "accent", "train/accuracy"], ["held out", "max", "holdout/accuracy"]], percent, ACCURACY);
  }
  add("Time", "seconds an epoch", [["time", "accent", "speed/epoch_s"]], fixed(1), { zero: true });
  add("Speed", "images a second, mean of the epoch", [["images/s", "accent", "speed/images_per_s"]], fixed(1), { zero: true });
  return made;
}

// ---- cells ----

const X = 46, ROW = 56, PILL = 100, STEP = 52;
const width = (index, numNodes) => (index < 2 || index === numNodes + 2 ? 30 : 14); // half of it, of a state

/** A cell with each state and each possible edge at its place for good; `show` says which edges are kept. */
function cellView(title, numNodes, concat) {
  const y = (index) => 24 + ROW * index;
  const numStates = numNodes + 2;
  const apex = (span) => 118 + STEP * (span - 1);
  const picture = svg("svg", { class: "cell", role: "img", viewBox: `0 0 ${apex(numStates - 1) + PILL / 2 + 4} ${y(numStates) + 24}` });
  const places = new Map();
  const ghosts = svg("g"), arcs = svg("g"), pills = svg("g");
  for (let node = 2; node < numStates; node++) {
    for (let source = 0; source < node; source++) {
      const from = [X + width(source, numNodes), y(source) + 5], to = [X + width(node, numNodes), y(node) - 5];
      const reach = apex(node - source);
      const bend = (8 * reach - from[0] - to[0]) / 6; // of a cubic whose middle is at `reach`
      const d = `M${from} C${bend},${from[1]} ${bend},${to[1]} ${to[0] + 7},${to[1]}`;
      ghosts.append(svg("path", { class: "ghost", d }));
      const path = svg("path", { class: "arc", d });
      const head = svg("path", { class: "head", d: `M${to} l9,-5 v10 z` });
      const label = svg("text", { x: reach, y: (from[1] + to[1]) / 2 });
      const hint = svg("title");
      const pill = svg("g", { class: "pill" }, hint,
        svg("rect", { class: "back", x: reach - PILL / 2, y: (from[1] + to[1]) / 2 - 10.5, width: PILL, height: 21, rx: 10.5 }), label);
      const arc = svg("g", {}, path, head), tag = svg("g", {}, pill);
      arcs.append(arc);
      pills.append(tag);
      places.set(`${source}-${node}`, { arc, tag, path, label, hint });
    }
  }
  const rails = concat.map((node) => svg("path", { class: "rail", d: `M${X - 14},${y(node)} H20 Q8,${y(node)} 8,${y(node) + 12} V${y(numStates) - 12} Q8,${y(numStates)} 16,${y(numStates)}` }));
  const states = [];
  for (let index = 0; index <= numStates; index++) {
    const half = width(index, numNodes);
    const name = index < 2 ? ["c", `k−${2 - index}`] : index === numStates ? ["c", "k"] : [`${index - 2}`];
    states.push(svg("rect", { class: half === 14 ? "state" : "state end", x: X - half, y: y(index) - 14, width: 2 * half, height: 28, rx: 14 }),
      svg("text", { x: X, y: y(index) }, name[0], name[1] && svg("tspan", { class: "sub", dy: 4 }, name[1])));
  }
  picture.append(ghosts, ...rails, arcs, ...states, pills);
  const note = el("small");
  function show(edges, before, weightOf) {
    const kept = new Map(edges.map(([primitive, source], index) => [`${source}-${2 + (index >> 1)}`, primitive]));
    const old = before && new Map(before.map(([primitive, source], index) => [`${source}-${2 + (index >> 1)}`, primitive]));
    let numChanged = 0;
    for (const [key, { arc, tag, path, label, hint }] of places) {
      const primitive = kept.get(key);
      const changed = Boolean(primitive && old && old.get(key) !== primitive);
      numChanged += changed;
      const state = primitive ? `kept ${kind(primitive)}${changed ? " changed" : ""}` : "";
      arc.setAttribute("class", state);
      tag.setAttribute("class", state);
      // A length with a unit: only a style can have a transition.
      const weight = primitive && weightOf ? weightOf(key, primitive) : null;
      path.style.strokeWidth = primitive ? `${weight == null ? 2.5 : 1 + 7 * weight}px` : "";
      if (!primitive) continue;
      label.textContent = words(primitive);
      hint.textContent = `${words(primitive)}${weight == null ? "" : `, weight ${weight.toFixed(3)}`}`;
    }
    const text = [...kept].map(([key, primitive]) => `${words(primitive)} from ${state(+key.split("-")[0])} to ${state(+key.split("-")[1])}`);
    picture.setAttribute("aria-label", `${title}: ${text.join("; ")}`);
    note.textContent = !old ? "" : numChanged ? `${numChanged} ${numChanged === 1 ? "edge" : "edges"} changed` : "as in the epoch before";
  }
  return { card: el("section", { class: "card" }, el("h3", {}, title, " ", note), picture), show };
}

// ---- parts of the page ----

/** Colour a square of a heat map by a share in [0, 1], with letters that stay readable on it. */
function tint(square, share) {
  square.style.background = `color-mix(in srgb, var(--accent) ${Math.round(100 * share)}%, var(--card))`;
  square.style.color = share > 0.8 ? "var(--on-accent)" : share > 0.6 ? "light-dark(var(--ink), var(--on-accent))" : "var(--ink)";
  return square;
}

const heading = (title, note = "") => [el("h2", {}, title), el("p", { class: "note" }, note)];

function table(columns, rows, { footer = [], caption, classes = "" } = {}) {
  const line = (cells, tag) => cells.map((cell, index) =>
    el(tag === "th" ? "th" : index ? "td" : "th", { class: columns[index][1] ?? false, scope: tag === "th" ? "col" : index ? false : "row" }, cell));
  return el("div", { class: "scroll" }, el("table", { class: classes },
    caption && el("caption", {}, caption),
    el("thead", {}, el("tr", {}, line(columns.map(([name]) => name), "th"))),
    el("tbody", {}, rows.map((row) => el("tr", { class: row.own ? "own" : false }, line(row.cells ?? row, "td")))),
    footer.length ? el("tfoot", {}, footer.map((row) => el("tr", {}, line(row, "td")))) : null));
}

function copyable(label, text) {
  const source = el("pre", {}, text);
  const button = el("button", { class: "quiet", type: "button", "aria-label": `copy: ${label}`, onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch { // without permission the text is selected, for a copy by hand
      getSelection().selectAllChildren(source);
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  } }, "copy");
  return el("div", { class: "command" }, el("div", {}, label, button), source);
}

function themeButton() {
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const button = el("button", { class: "quiet", type: "button", onclick: () => { root.dataset.theme = dark() ? "light" : "dark"; again(); } });
  const again = () => {
    button.textContent = dark() ? "light" : "dark";
    button.setAttribute("aria-label", `change to ${button.textContent} colours`);
    charts.forEach(({ draw }) => draw());
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  button.textContent = dark() ? "light" : "dark";
  return button;
}

function header(over, title, facts) {
  document.title = `${title} – nas report`;
  return el("header", {}, el("div", {}, el("div", { class: "over" }, over), el("h1", {}, title), el("div", { class: "over" }, facts)), themeButton());
}

const tiles = (items) => el("dl", { class: "tiles" }, items.map(([name, value, unit], index) =>
  el("div", { class: index ? false : "first" }, el("dt", {}, name), el("dd", {}, value, unit && el("small", {}, ` ${unit}`)))));

function status(run) {
  const done = last(run.epochs) === run.num_epochs && (run.kind === "search" || "accuracy" in run.test);
  const text = `${last(run.epochs)} of ${run.num_epochs} epochs${done ? "" : " so far"}`;
  return el("span", { class: `status ${done ? "done" : "open"}` }, text);
}

function settings(run) {
  const numOther = run.config.flatMap(([, flags]) => flags).filter(([, value, usual]) => value !== usual).length;
  return [
    heading("Configuration", numOther ? `${numOther} ${numOther === 1 ? "flag differs" : "flags differ"} from the default, and ${numOther === 1 ? "is" : "are"} marked.` : "All flags are at their defaults."),
    el("div", { class: "columns" }, run.config.map(([title, flags]) => el("section", { class: "card" }, table(
      [["flag"], ["value", "num"], ["default", "num default"]],
      flags.map(([flag, value, usual]) => ({ own: value !== usual, cells: [flag, value, value === usual ? "" : usual] })),
      { caption: title, classes: "flags" })))),
    heading("Where it ran"),
    el("section", { class: "card" }, table([["what"], ["value"]], run.environment, { classes: "flags" })),
  ];
}

function use(run) {
  return [
    heading("Take it from here"),
    el("section", { class: "card" }, run.commands.map(([label, command]) => copyable(label, command)), copyable("genotype, as papers exchange it", run.genotype)),
  ];
}

function sizes(owns) {
  const rows = [...published.map((row) => ({ ...row, own: false })), ...owns.map((run) => ({ name: run.name, ...run.size, own: true }))];
  rows.sort((a, b) => a.weights - b.weights);
  return [
    heading("Size as a final network", "36 channels, 20 cells, 10 classes, images of 3 × 32 × 32, without the auxiliary head; by weights. Test errors on CIFAR-10 as published."),
    el("section", { class: "card" }, table(
      [["cell"], ["weights, million", "num"], ["multiply-adds, million", "num"], ["test error, %", "num"]],
      rows.map((row) => ({ own: row.own, cells: [row.name, millions(row.weights), millions(row.multiply_adds), row.test_error_percent ?? "–"] })))),
  ];
}

// ---- the page of one search ----

function searchPage(run) {
  const numNodes = run.cells.normal[0].length / 2;
  const keys = [];
  for (let node = 2; node < numNodes + 2; node++) for (let source = 0; source < node; source++) keys.push(`${source}-${node}`);
  const named = (key) => key.split("-").map((index) => state(+index)).join(" → ");
  const weightOf = (cell, index) => (key, primitive) => run.edge_weights[cell][index][keys.indexOf(key)][primitives.indexOf(primitive)];
  const views = CELLS.map(([cell, title]) => [cell, cellView(title, numNodes, run.concat[cell])]);

  const slider = el("input", { type: "range", min: 0, max: run.epochs.length - 1, value: run.epochs.length - 1, "aria-label": "epoch", oninput: () => { pause(); show(+slider.value); } });
  const where = el("output");
  let timer = null;
  const play = el("button", { class: "play", type: "button", onclick: () => {
    if (timer != null) return pause();
    play.textContent = "pause";
    if (+slider.value === run.epochs.length - 1) show(0);
    timer = setInterval(() => (+slider.value < run.epochs.length - 1 ? show(+slider.value + 1) : pause()), Math.max(120, Math.min(900, 20000 / run.epochs.length)));
    return undefined;
  } }, "play");
  const pause = () => { clearInterval(timer); timer = null; play.textContent = "play"; };

  const edge = ([primitive, source]) => [el("span", { class: `dot ${kind(primitive)}` }), `${words(primitive)} from ${state(source)}`];
  const moments = run.changes.map((change) => el("tr", {},
    el("td", {}, el("button", { class: "jump", type: "button", "aria-label": `show epoch ${change.epoch}`, onclick: () => { pause(); show(run.epochs.indexOf(change.epoch)); } }, `${change.epoch}`)),
    el("td", {}, `${change.cell === "normal" ? "normal" : "reduction"} ${state(change.node)}`),
    el("td", {}, edge(change.from)), el("td", {}, edge(change.to))));
  const changed = el("section", { class: "card" }, el("h3", {}, "When edges changed ", el("small", {}, `${run.changes.length} since epoch ${run.epochs[0]}`)),
    moments.length
      ? el("div", { class: "scroll tall" }, el("table", {}, el("thead", {}, el("tr", {}, ["epoch", "node", "from", "to"].map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, moments)))
      : el("p", { class: "over" }, run.epochs.length > 1 ? "No edge has changed: every epoch led to the same cells." : "One epoch is too few for a change."));

  let cell = "normal";
  let chosen = `${last(run.cells.normal)[0][1]}-2`;
  let one = null;
  const heat = el("section", { class: "card" }), beside = el("div", { class: "beside" });
  const choices = CELLS.map(([name, title]) => el("button", { type: "button", onclick: () => { cell = name; heatMap(); curves(); } }, title));
  function heatMap() {
    const index = +slider.value;
    const kept = new Set(run.cells[cell][index].map(([primitive, source], at) => `${source}-${2 + (at >> 1)} ${primitive}`));
    choices.forEach((choice, at) => choice.setAttribute("aria-pressed", CELLS[at][0] === cell));
    const held = heat.contains(document.activeElement); // a key press chose an edge: the new button takes the focus
    const rows = keys.map((key, at) => {
      const row = run.edge_weights[cell][index][at];
      const button = el("button", { type: "button", "aria-pressed": key === chosen, onclick: () => { chosen = key; heatMap(); curves(); } }, named(key));
      return [key.startsWith("0-") && at ? el("tr", { class: "gap", "aria-hidden": true }, el("td")) : null,
        el("tr", {}, el("th", { scope: "row" }, button), row.map((weight, column) => {
          const primitive = primitives[column];
          const square = el("td", { class: kept.has(`${key} ${primitive}`) ? "kept" : false, title: `${words(primitive)}, ${named(key)}` }, weight.toFixed(2).replace(/^0/, ""));
          return tint(square, weight);
        }))];
    });
    heat.replaceChildren(el("h3", {}, "All edges ", el("small", {}, `epoch ${run.epochs[index]}; framed: kept in the derived cell`)),
      el("table", { class: "heat" }, el("thead", {}, el("tr", {}, el("th", {}, "edge"), primitives.map((primitive) => el("th", { scope: "col", title: words(primitive) }, short(primitive))))), el("tbody", {}, rows)));
    if (held) heat.querySelector("[aria-pressed=true]").focus();
  }
  function curves() {
    one?.entry.stop();
    const rows = primitives.map((primitive, column) => [words(primitive), primitive.split("_")[0],
      run.edge_weights[cell].map((edges) => edges[keys.indexOf(chosen)][column]), primitive.endsWith("5x5") ? [6, 4] : undefined]);
    one = chart(`Edge ${named(chosen)}`, "weight of each primitive", run.epochs, rows, fixed(3), { height: 344 });
    beside.replaceChildren(one);
    one.entry.draw();
  }
  function show(index) {
    slider.value = index;
    shown = run.epochs[index];
    slider.setAttribute("aria-valuetext", `epoch ${shown}`);
    where.textContent = `epoch ${shown} of ${last(run.epochs)}`;
    views.forEach(([name, view]) => view.show(run.cells[name][index], run.cells[name][index - 1], weightOf(name, index)));
    moments.forEach((row, at) => row.classList.toggle("now", run.changes[at].epoch === shown));
    heatMap();
    charts.forEach(({ plot, mark }) => plot && mark());
  }

  const series = (name) => last(run.series[name]);
  page.append(
    header(`Search on ${run.dataset}`, run.name, [status(run), ` · seed ${run.seed} · ${when(run.date)}`]),
    tiles([
      ["upper accuracy", percent(series("upper/accuracy"))], ["lower accuracy", percent(series("lower/accuracy"))],
      ["skip connections, normal + reduction", `${whole(series("cells/skip_connections_normal"))} + ${whole(series("cells/skip_connections_reduce"))}`],
      ["weights of the final network", millions(run.size.weights), "million"], ["multiply-adds", millions(run.size.multiply_adds), "million"],
      ["time", duration(run.time_s), "h:m:s"],
    ]),
    el("div", {}, // the player stays in sight as long as what it moves
      heading("Derived cells", "The cell that each epoch's alphas lead to. A line is as thick as the weight of its edge; a framed label is new in this epoch."),
      el("div", { class: "player", hidden: run.epochs.length < 2 ? "" : null }, play, slider, where),
      el("div", { class: "grid" }, views.map(([, view]) => view.card)),
      el("div", { class: "stack" }, el("div"), changed),
      heading("Edge weights", "What the softmax of the alphas gives each primitive. Choose an edge to see its epochs."),
      el("div", { class: "switch", role: "group", "aria-label": "cell" }, choices),
      el("div", { class: "grid" }, heat, beside),
      heading("Epochs", "The lower level learns the weights, the upper level the alphas, each from its own images."),
      el("div", { class: "grid" }, chartsOf(run))),
    ...[sizes([run]), use(run), settings(run)].flat(Infinity),
  );
  show(run.epochs.length - 1);
  curves();
}

// ---- the page of one final network ----

function finalPage(run) {
  const measured = "accuracy" in run.test;
  page.append(
    header(`Final network on ${run.dataset}`, run.name, [status(run), ` · seed ${run.seed} · ${when(run.date)}`]),
    tiles([
      ["test accuracy", measured ? percent(run.test.accuracy) : "–", measured ? "" : "after the last epoch"], ["train accuracy", percent(last(run.series["train/accuracy"]))],
      ["held-out accuracy", percent(last(run.series["holdout/accuracy"]))], ["weights", millions(run.size.weights), "million"],
      ["multiply-adds", millions(run.size.multiply_adds), "million"], ["time", duration(run.time_s), "h:m:s"],
    ]),
    ...heading("Cells"),
    el("div", { class: "grid" }, CELLS.map(([cell, title]) => {
      const view = cellView(title, run.cells[cell][0].length / 2, run.concat[cell]);
      view.show(run.cells[cell][0]);
      return view.card;
    })),
    ...heading("Epochs", "The test set serves once, after the last epoch."),
    el("div", { class: "grid" }, chartsOf(run)),
    ...[use(run), settings(run)].flat(Infinity),
  );
}

// ---- the page of several runs ----

function meanAndSpread(values) {
  const known = values.filter((value) => value != null);
  if (!known.length) return "–";
  const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
  if (known.length < 2) return percent(mean);
  const spread = Math.sqrt(known.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (known.length - 1));
  return `${(100 * mean).toFixed(1)} ± ${(100 * spread).toFixed(1)} %`;
}

function comparePage() {
  const search = runs[0].kind === "search";
  const names = runs.map((run, index) => (runs.filter(({ name }) => name === run.name).length > 1 ? `${run.name} (${index + 1})` : run.name));
  const end = (name) => (run) => last(run.series[name]);
  const accuracies = search
    ? [["upper accuracy", end("upper/accuracy")], ["lower accuracy", end("lower/accuracy")]]
    : [["test accuracy", (run) => run.test.accuracy], ["held-out accuracy", end("holdout/accuracy")], ["train accuracy", end("train/accuracy")]];
  const skips = (run) => CELLS.map(([cell]) => whole(end(`cells/skip_connections_${cell}`)(run))).join(" + ");
  const rest = [...(search ? [["skips", skips]] : []), ["weights, M", (run) => millions(run.size.weights)], ["multiply-adds, M", (run) => millions(run.size.multiply_adds)], ["time", (run) => duration(run.time_s)]];
  const columns = [["run"], ["data set"], ["seed", "num"], ["epochs", "num"], ...accuracies.map(([name]) => [name, "num"]), ...rest.map(([name]) => [name, "num"])];
  const mark = (index) => { const dot = el("span", { class: "dot" }); dot.style.background = `var(--run-${index % 6})`; return dot; };
  const rows = runs.map((run, index) => [[mark(index), names[index]], run.dataset, `${run.seed}`, last(run.epochs) === run.num_epochs ? `${run.num_epochs}` : `${last(run.epochs)} of ${run.num_epochs}`,
    ...accuracies.map(([, of]) => percent(of(run))), ...rest.map(([, of]) => of(run))]);
  const footer = [...new Set(runs.map(({ dataset }) => dataset))].map((dataset) => {
    const those = runs.filter((run) => run.dataset === dataset);
    return ["mean ± spread", dataset, "", `${those.length} runs`, ...accuracies.map(([, of]) => meanAndSpread(those.map(of))), ...rest.map(() => "")];
  });

  const longest = Math.max(...runs.map(({ epochs }) => last(epochs)));
  const epochs = Array.from({ length: longest }, (_, index) => index + 1);
  const overlaid = (title, unit, name, format, options) => {
    const lines = runs.map((run, index) => {
      const values = new Map(run.epochs.map((epoch, at) => [epoch, run.series[name][at]]));
      return [names[index], `run-${index % 6}`, epochs.map((epoch) => values.get(epoch) ?? null), index < 6 ? undefined : [6, 4]];
    }).filter(([, , values]) => there(values));
    return lines.length ? chart(title, unit, epochs, lines, format, options) : null;
  };
  const drawn = search
    ? [overlaid("Upper accuracy", "of the supernet", "upper/accuracy", percent, ACCURACY), overlaid("Upper loss", "cross entropy, nats", "upper/loss", fixed(3)),
      overlaid("Lower accuracy", "of the supernet", "lower/accuracy", percent, ACCURACY), overlaid("Lower loss", "cross entropy, nats", "lower/loss", fixed(3)),
      overlaid("Entropy, normal cell", "nats", "cells/entropy_normal_nats", fixed(4)), overlaid("Entropy, reduction cell", "nats", "cells/entropy_reduce_nats", fixed(4)),
      overlaid("Skip connections, normal cell", "", "cells/skip_connections_normal", fixed(0), COUNT), overlaid("Skip connections, reduction cell", "", "cells/skip_connections_reduce", fixed(0), COUNT)]
    : [overlaid("Train accuracy", "", "train/accuracy", percent, ACCURACY), overlaid("Train loss", "cross entropy, nats", "train/loss", fixed(3)),
      overlaid("Held-out accuracy", "", "holdout/accuracy", percent, ACCURACY), overlaid("Held-out loss", "cross entropy, nats", "holdout/loss", fixed(3))];

  page.append(
    header(search ? "Searches" : "Final networks", `${runs.length} runs compared`, names.join(", ")),
    ...heading("Runs", `Accuracies after the last epoch; the spread is the standard deviation over the runs of a data set.${search ? " Weights and multiply-adds as a final network (36 channels, 20 cells, CIFAR-10)." : ""}`),
    el("section", { class: "card" }, table(columns, rows, { footer })),
    ...heading("Epochs"),
    el("div", { class: "grid" }, drawn),
    ...(search ? agreement() : []),
    ...(search ? sizes(runs.map((run, index) => ({ ...run, name: names[index] }))) : []).flat(Infinity),
  );
}

function agreement() {
  const note = "How many of the runs kept an edge with a primitive, in the cells of their last epoch.";
  if (new Set(runs.map((run) => last(run.cells.normal).length)).size > 1) {
    return heading("Where the cells agree", "The runs have cells of different numbers of nodes: there is nothing to count.");
  }
  const cards = CELLS.map(([cell, title]) => {
    const counts = new Map();
    for (const run of runs) last(run.cells[cell]).forEach(([primitive, source], index) => {
      const key = `${source}-${2 + (index >> 1)}`;
      if (!counts.has(key)) counts.set(key, new Map());
      counts.get(key).set(primitive, (counts.get(key).get(primitive) ?? 0) + 1);
    });
    const order = [...counts.keys()].sort((a, b) => a.split("-")[1] - b.split("-")[1] || a.split("-")[0] - b.split("-")[0]);
    const shared = [...counts.values()].flatMap((of) => [...of.values()]).filter((count) => count === runs.length).length;
    const columns = primitives.slice(1);
    return el("section", { class: "card" }, el("h3", {}, title, " ", el("small", {}, `${shared} of ${last(runs[0].cells[cell]).length} edges are the same in all runs`)),
      el("table", { class: "heat" },
        el("thead", {}, el("tr", {}, el("th", {}, "edge"), columns.map((primitive) => el("th", { scope: "col", title: words(primitive) }, short(primitive))), el("th", { scope: "col" }, "any"))),
        el("tbody", {}, order.map((key) => el("tr", {}, el("th", { scope: "row" }, key.split("-").map((index) => state(+index)).join(" → ")),
          [...columns.map((primitive) => counts.get(key).get(primitive) ?? 0), [...counts.get(key).values()].reduce((sum, count) => sum + count, 0)].map((count, column) => {
            const square = el("td", { class: count === runs.length && column < columns.length ? "kept" : false }, count ? `${count}/${runs.length}` : "·");
            return tint(square, 0.7 * count / runs.length);
          }))))));
  });
  return [...heading("Where the cells agree", note), el("div", { class: "grid" }, cards)];
}

const wanted = location.hash.slice(1);
if (wanted === "dark" || wanted === "light") root.dataset.theme = wanted;
if (runs.length > 1) comparePage();
else if (runs[0].kind === "search") searchPage(runs[0]);
else finalPage(runs[0]);
charts.forEach(({ plot, draw }) => plot ?? draw());
root.dataset.ready = "";
