"use strict";
const X = 46, ROW = 56, PILL = 100, STEP = 52;
const width = (index, numNodes) => (index < INPUTS || index === numNodes + INPUTS ? 30 : 14); // half of it, of a state

/** Primitives of each edge that is there; both edges of a node may come from one state. */
function byPlace(edges) {
  const places = new Map(), nodes = ends(edges);
  edges.forEach(([primitive, source], index) => {
    const key = `${source}-${nodes[index]}`;
    places.set(key, [...(places.get(key) ?? []), primitive]);
  });
  return places;
}

/** A cell with each state and each possible edge at its place for good; `show` says which edges are kept. */
function cellView(title, numNodes, concat) {
  const y = (index) => 24 + ROW * index;
  const numStates = numNodes + INPUTS;
  const apex = (span) => 118 + STEP * (span - 1);
  const breadth = apex(numStates - 1) + PILL / 2 + 4;
  const picture = svg("svg", { class: "cell", role: "img", viewBox: `0 0 ${breadth} ${y(numStates) + 24}` });
  picture.style.maxWidth = `${1.2 * breadth}px`; // letters of one size, whatever the number of nodes
  const places = new Map();
  const ghosts = svg("g"), arcs = svg("g"), pills = svg("g");
  for (let node = INPUTS; node < numStates; node++) {
    for (let source = 0; source < node; source++) {
      const from = [X + width(source, numNodes), y(source) + 5], to = [X + width(node, numNodes), y(node) - 5];
      const reach = apex(node - source);
      const bend = (8 * reach - from[0] - to[0]) / 6; // of a cubic whose middle is at `reach`
      const d = `M${from} C${bend},${from[1]} ${bend},${to[1]} ${to[0] + 7},${to[1]}`;
      ghosts.append(svg("path", { class: "ghost", d }));
      const path = svg("path", { class: "arc", d });
      const head = svg("path", { class: "head", d: `M${to} l9,-5 v10 z` });
      const label = svg("text", { y: (from[1] + to[1]) / 2 });
      const hint = svg("title");
      const back = svg("rect", { class: "back", x: reach - PILL / 2, width: PILL, rx: 10.5 });
      const middle = (from[1] + to[1]) / 2;
      const write = (lines) => {
        const height = 21 + 13 * (lines.length - 1);
        fill(back, { height, y: middle - height / 2 }, []);
        label.replaceChildren(...lines.map((line, index) => svg("tspan", { x: reach, dy: index ? 14 : -7 * (lines.length - 1) }, line)));
      };
      const arc = svg("g", {}, path, head), tag = svg("g", {}, svg("g", { class: "pill" }, hint, back, label));
      arcs.append(arc);
      pills.append(tag);
      places.set(`${source}-${node}`, { arc, tag, path, write, hint });
    }
  }
  const rails = concat.map((node) => svg("path", { class: "rail", d: `M${X - 14},${y(node)} H20 Q8,${y(node)} 8,${y(node) + 12} V${y(numStates) - 12} Q8,${y(numStates)} 16,${y(numStates)}` }));
  const states = [];
  for (let index = 0; index <= numStates; index++) {
    const half = width(index, numNodes);
    const name = index < INPUTS ? ["c", `k−${INPUTS - index}`] : index === numStates ? ["c", "k"] : [`${index - INPUTS}`];
    states.push(svg("rect", { class: half === 14 ? "state" : "state end", x: X - half, y: y(index) - 14, width: 2 * half, height: 28, rx: 14 }),
      svg("text", { x: X, y: y(index) }, name[0], name[1] && svg("tspan", { class: "sub", dy: 4 }, name[1])));
  }
  picture.append(ghosts, ...rails, arcs, ...states, pills);
  const note = el("small");
  function show(edges, before, weightOf) {
    const kept = byPlace(edges), old = before && byPlace(before);
    let numChanged = 0;
    for (const [key, { arc, tag, path, write, hint }] of places) {
      const primitives = kept.get(key) ?? [], primitive = primitives[0];
      const changed = Boolean(primitive && old && `${old.get(key)}` !== `${primitives}`);
      numChanged += changed;
      const state = primitive ? `kept ${kind(primitive)}${changed ? " changed" : ""}` : "";
      arc.setAttribute("class", state);
      tag.setAttribute("class", state);
      // A length with a unit: only a style can have a transition.
      const weight = primitive && weightOf ? weightOf(key, primitive) : null;
      path.style.strokeWidth = primitive ? `${weight == null ? 2.5 : 1 + 7 * weight}px` : "";
      if (!primitive) continue;
      write(primitives.map(words));
      hint.textContent = `${primitives.map(words).join(", ")}${weight == null ? "" : `, weight ${weight.toFixed(3)}`}`;
    }
    const text = [...kept].map(([key, primitives]) => `${primitives.map(words).join(" and ")} from ${state(+key.split("-")[0])} to ${state(+key.split("-")[1])}`);
    picture.setAttribute("aria-label", `${title}: ${text.join("; ")}`);
    note.textContent = !old ? "" : numChanged ? `${plural(numChanged, "edge")} changed` : "same as the epoch before";
  }
  return { card: el("section", { class: "card" }, el("h3", {}, title, " ", note), picture), show };
}

/** The last cells of a run, one card each. */
const cellCards = (run) => CELLS.map(([cell, title]) => {
  const edges = last(run.cells[cell]);
  const view = cellView(title, nodesOf(edges), run.concat[cell]);
  view.show(edges);
  return view.card;
});
