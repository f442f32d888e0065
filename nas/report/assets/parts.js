"use strict";
// Everything that comes from a run goes through `append` as text, or into attributes that cannot run.
const { runs, space, published, overview } = JSON.parse(document.getElementById("data").textContent);
const { primitives, num_inputs: INPUTS, edges_kept: KEPT, quantiles, truth: [TRUTH], final_network: NETWORK } = space; // of all runs
const page = document.getElementById("page");
const root = document.documentElement;
const CELLS = space.cells.map(([cell, title]) => [cell, title[0].toUpperCase() + title.slice(1)]);

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
const millions = (value) => (value < 9.995e8 ? (value / 1e6).toPrecision(3) : (value / 1e6).toFixed(0));
const counted = (value) => (value < 1e5 ? [whole(value)] : [millions(value), "million"]);
const percent = (value) => (value == null ? "–" : `${(100 * value).toFixed(1)} %`);
const fixed = (digits) => (value) => (value == null ? "–" : value.toFixed(digits));
const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
const last = (values) => values[values.length - 1];
const kind = (primitive) => `kind-${primitive.split("_")[0]}`;
const breakable = (name) => name.split(/(?<=_)/).flatMap((part, index) => (index ? [el("wbr"), part] : [part])); // a narrow column breaks it after _
const words = (primitive) => primitive.replaceAll("_", " ").replace(/(\d)x(\d)/g, "$1×$2");
/** Of the data set by whose test images cells are ranked, where the space knows how good each cell is. */
const ranked = TRUTH?.split("/")[1].split("_")[0].toUpperCase();
const short = (title) => title.toLowerCase().replace(/ cell$/, "");
const state = (index) => (index < INPUTS ? `c(k−${INPUTS - index})` : `${index - INPUTS}`);
/** The node of each edge of a derived cell. */
const ends = (edges) => {
  const found = [];
  for (let node = INPUTS; found.length < edges.length; node++) found.push(...Array(Math.min(node, KEPT)).fill(node));
  return found;
};
const nodesOf = (edges) => last(ends(edges)) + 1 - INPUTS;
const arrow = (key) => key.split("-").map((index) => state(+index)).join(" → ");
const when = (date) => date.replace("T", " ").replace(/(:\d\d):\d\d(\.\d+)?/, "$1").replace("+00:00", " UTC");
function duration(seconds) {
  const total = Math.round(seconds);
  const two = (value) => String(value).padStart(2, "0");
  return `${Math.floor(total / 3600)}:${two(Math.floor(total / 60) % 60)}:${two(total % 60)}`;
}
/** Gigabytes at the peak, where they were recorded. */
function memory(run) {
  const known = run.series["speed/peak_memory_gb"].filter((value) => value != null);
  return known.length ? Math.max(...known).toPrecision(3) : null;
}

const heading = (title, ...note) => [el("h2", {}, title), el("p", { class: "note" }, note)];
const together = (...text) => el("span", { class: "together" }, text); // a line ends before it, not within

function table(columns, rows, { footer = [], caption, classes = "", box = "scroll" } = {}) {
  const line = (cells, tag) => cells.map((cell, index) =>
    el(tag === "th" ? "th" : index ? "td" : "th", { class: columns[index][1] ?? false, scope: tag === "th" ? "col" : index ? false : "row" }, cell));
  return el("div", { class: box }, el("table", { class: classes },
    caption && el("caption", {}, caption),
    el("thead", {}, el("tr", {}, line(columns.map(([name]) => name), "th"))),
    el("tbody", {}, rows.map((row) => el("tr", { class: row.own ? "own" : false }, line(row.cells ?? row, "td")))),
    footer.length ? el("tfoot", {}, footer.map((row) => el("tr", {}, line(row, "td")))) : null));
}

/** A table of edges with one column per primitive; rows: [key of the edge, what names it, squares: [text, share, kept, hint]]. */
function heatTable(columns, rows) {
  const brief = (name) => words(name).replace(/ (pool|conv|connect)/, "").split(" ").flatMap((word, index) => (index ? [el("br"), word] : [word]));
  const node = (key) => key.split("-")[1];
  return el("table", { class: "heat" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "edge"), columns.map((name) => el("th", { scope: "col", title: words(name) }, brief(name))))),
    el("tbody", {}, rows.map(([key, name, squares], at) => [
      at && node(key) !== node(rows[at - 1][0]) ? el("tr", { class: "gap", "aria-hidden": true }, el("td")) : null,
      el("tr", {}, el("th", { scope: "row" }, name), squares.map(([text, share, kept, hint]) => {
        const square = el("td", { class: kept ? "kept" : false, title: hint }, text);
        square.style.background = `color-mix(in srgb, var(--tint) ${Math.round(100 * share)}%, var(--card))`;
        return square;
      }))])));
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
    say();
    charts.forEach(({ draw }) => draw());
  };
  const say = () => {
    button.textContent = dark() ? "light" : "dark";
    button.setAttribute("aria-label", `change to ${button.textContent} colours`);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  say();
  return button;
}

function header(over, title, facts = []) {
  document.title = `${title} – nas report`;
  return el("header", {}, el("div", {}, el("div", { class: "over" }, over), el("h1", {}, title),
    el("div", { class: "over" }, facts.map((fact, index) => [index ? " · " : null, typeof fact === "string" ? together(fact) : fact]))), themeButton());
}
const factsOf = (run) => [status(run), `seed ${run.seed}`, when(run.date)];

/** items: [name, value, unit]; without a value it is left out. */
const tiles = (items) => el("dl", { class: "tiles" }, items.filter(([, value]) => value != null).map(([name, value, unit], index) =>
  el("div", { class: index ? false : "first" }, el("dt", {}, name), el("dd", {}, value, unit && el("small", {}, ` ${unit}`)))));

function status(run) {
  const done = run.finished;
  return el("span", { class: `together status ${done ? "done" : "open"}` }, `${last(run.epochs)} of ${plural(run.num_epochs, "epoch")}${done ? "" : " so far"}`);
}

function settings(run) {
  const numOther = run.config.flatMap(([, flags]) => flags).filter(([, value, usual]) => value !== usual).length;
  return [
    heading("Configuration", numOther ? `${plural(numOther, "flag differs", "flags differ")} from the default and ${numOther === 1 ? "is" : "are"} marked.` : "All flags are at their defaults."),
    el("div", { class: "columns" }, run.config.map(([title, flags]) => el("section", { class: "card" }, table(
      [["flag"], ["value", "num"], ["default", "num default"]],
      flags.map(([flag, value, usual]) => ({ own: value !== usual, cells: [flag, value, value === usual ? "" : usual] })),
      { caption: title, classes: "flags" })))),
    heading("Hardware and software"),
    el("section", { class: "card" }, table([["what"], ["value"]], run.environment, { classes: "flags" })),
  ];
}

function use(run) {
  return [
    heading("Commands and genotype"),
    el("section", { class: "card" }, run.commands.map(([label, command]) => copyable(label, command)), copyable("genotype in the text form of the papers", run.genotype)),
  ];
}

function sizes(owns) {
  const rows = [...published.map((row) => ({ ...row, own: false })), ...owns.map((run) => ({ name: run.name, ...run.size, own: true }))];
  rows.sort((a, b) => a.weights - b.weights);
  return [
    heading("Size as a final network", `${owns.length === 1 ? "The cell of this run" : "The cells of these runs"}${published.length ? " (marked) and published cells, each" : ""} as a network with ${NETWORK} and 10 classes for images of `, together("3 × 32 × 32"), ", without the auxiliary head, ordered by weights.", published.length ? [" The test errors are the published ones on ", together("CIFAR-10"), "."] : ""),
    el("section", { class: "card" }, table([["cell"], ["weights, million", "num"], ["multiply-adds, million", "num"], ["test error, %", "num"]],
      rows.map((row) => ({ own: row.own, cells: [breakable(row.name), millions(row.weights), millions(row.multiply_adds), row.test_error_percent ?? "–"] })))),
  ];
}
