"use strict";

function searchPage(run) {
  const [firstCell] = CELLS[0];
  const numNodes = nodesOf(run.cells[firstCell][0]);
  const keys = [];
  for (let node = INPUTS; node < numNodes + INPUTS; node++) for (let source = 0; source < node; source++) keys.push(`${source}-${node}`);
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

  const edge = ([primitive, source]) => [together(el("span", { class: `dot ${kind(primitive)}` }), words(primitive)), " ", together(`from ${state(source)}`)];
  const moments = run.changes.map((change, at) => el("tr", {},
    el("td", {}, change.epoch === run.changes[at - 1]?.epoch ? `${change.epoch}`
      : el("button", { class: "jump", type: "button", "aria-label": `show epoch ${change.epoch}`, onclick: () => { pause(); show(run.epochs.indexOf(change.epoch)); } }, `${change.epoch}`)),
    el("td", {}, `${short(CELLS.find(([name]) => name === change.cell)[1])} ${state(change.node)}`),
    el("td", {}, edge(change.from)), el("td", {}, edge(change.to))));
  const list = el("div", { class: "scroll tall" }, el("table", {}, el("thead", {}, el("tr", {}, ["epoch", "node", "from", "to"].map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, moments)));
  const changed = el("section", { class: "card" }, el("h3", {}, "When edges changed ", el("small", {}, moments.length ? `${plural(run.changes.length, "change")} since epoch ${run.epochs[0]}` : "")),
    moments.length
      ? list
      : el("p", { class: "over" }, run.epochs.length > 1 ? "No edge changed: every epoch has the same cells." : "There is only one epoch so far."));

  const largest = CELLS.flatMap(([cell]) => run.edge_weights[cell].flat(2)).reduce((a, b) => Math.max(a, b));
  let cell = firstCell;
  let chosen = `${last(run.cells[firstCell])[0][1]}-${INPUTS}`;
  let one = null;
  const heat = el("section", { class: "card" }), beside = el("div", { class: "beside" });
  const choices = CELLS.map(([name, title]) => el("button", { type: "button", onclick: () => { cell = name; heatMap(); curves(); } }, title));
  const title = () => CELLS.find(([name]) => name === cell)[1];
  function heatMap() {
    const index = +slider.value;
    const nodes = ends(run.cells[cell][index]);
    const kept = new Set(run.cells[cell][index].map(([primitive, source], at) => `${source}-${nodes[at]} ${primitive}`));
    choices.forEach((choice, at) => choice.setAttribute("aria-pressed", CELLS[at][0] === cell));
    const held = heat.contains(document.activeElement); // a key press chose an edge: the new button takes the focus
    const rows = keys.map((key, at) => [key,
      el("button", { type: "button", "aria-pressed": key === chosen, onclick: () => { chosen = key; heatMap(); curves(); } }, arrow(key)),
      run.edge_weights[cell][index][at].map((weight, column) =>
        [weight.toFixed(2).replace(/^0/, ""), weight / largest, kept.has(`${key} ${primitives[column]}`), `${words(primitives[column])}, ${arrow(key)}`])]);
    heat.replaceChildren(el("h3", {}, `${title()}, all edges `, el("small", {}, `epoch ${run.epochs[index]}; framed: part of the derived cell`)), heatTable(primitives, rows));
    if (held) heat.querySelector("[aria-pressed=true]").focus();
  }
  function curves() {
    one?.entry.stop();
    const rows = primitives.map((primitive, column) => [words(primitive), primitive.split("_")[0],
      run.edge_weights[cell].map((edges) => edges[keys.indexOf(chosen)][column]), /[15]x[15]$/.test(primitive) ? [6, 4] : primitive === "avg_pool_3x3" ? [2, 3] : undefined]);
    one = chart(`${title()}, edge ${arrow(chosen)}`, "weight of each primitive", run.epochs, rows, fixed(3), { height: 344 });
    beside.replaceChildren(one);
    one.entry.draw();
  }
  function show(index) {
    slider.value = index;
    shown = run.epochs[index];
    slider.setAttribute("aria-valuetext", `epoch ${shown}`);
    where.textContent = `epoch ${shown} of ${run.num_epochs}`;
    views.forEach(([name, view]) => view.show(run.cells[name][index], run.cells[name][index - 1], weightOf(name, index)));
    moments.forEach((row, at) => row.classList.toggle("now", run.changes[at].epoch === shown));
    const first = moments.findLast((row, at) => run.changes[at].epoch <= shown && run.changes[at].epoch !== run.changes[at - 1]?.epoch);
    if (timer != null || document.activeElement === slider) list.scrollTop = (first?.offsetTop ?? 0) - 40;
    heatMap();
    charts.forEach(({ plot, mark }) => plot && mark());
  }

  const series = (name) => last(run.series[name]);
  page.append(
    header(`Search on ${run.dataset}`, run.name, factsOf(run)),
    tiles([
      ["upper accuracy", percent(series("upper/accuracy"))], ["lower accuracy", percent(series("lower/accuracy"))],
      ["true test accuracy of the cell", TRUTH ? percent(series(TRUTH)) : null], ["its rank", TRUTH ? whole(series("truth/rank")) : null],
      [`skip connections, ${CELLS.map(([, title]) => short(title)).join(" + ")}`, CELLS.map(([cell]) => whole(series(`cells/skip_connections_${cell}`))).join(" + ")],
      ["weights of the final network", ...counted(run.size.weights)], ["multiply-adds", ...counted(run.size.multiply_adds)],
      ["time, h:m:s", duration(run.time_s)], ["memory, peak", memory(run), "GB"],
    ]),
    el("div", {}, // the player stays in sight beside what it moves
      heading("Derived cells", "The cells derived from the alphas of each epoch. A thicker line has a larger weight. A framed label is new in this epoch."),
      el("div", { class: "player", hidden: run.epochs.length < 2 ? "" : null }, play, slider, where),
      el("div", { class: "grid" }, views.map(([, view]) => view.card)),
      el("div", { class: "stack" }, el("div"), changed),
      heading("Edge weights", "The softmax of the alphas: one weight per edge and primitive. ", el("span", { class: "screen" }, "Choose an edge to see its curves.")),
      el("div", { class: "switch", role: "group", "aria-label": "cell" }, choices),
      el("div", { class: "grid" }, heat, beside),
      heading("Epochs", "The lower level learns the weights, the upper level the alphas, each from its own images."),
      el("div", { class: "grid" }, chartsOf(run))),
    ...[sizes([run]), use(run), settings(run)].flat(Infinity),
  );
  show(run.epochs.length - 1);
  curves();
}
