"use strict";

function meanAndSpread(values) {
  const known = values.filter((value) => value != null);
  if (!known.length) return "–";
  const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
  if (known.length < 2) return percent(mean);
  const spread = Math.sqrt(known.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (known.length - 1));
  return `${(100 * mean).toFixed(1)} ± ${(100 * spread).toFixed(1)} %`;
}

/** Names of the runs, with a number where several have one name. */
const namesOf = (runs) => runs.map(({ name }, index) => (runs.filter((other) => other.name === name).length > 1 ? `${name} (${index + 1})` : name));

function comparePage() {
  const search = runs[0].kind === "search";
  const names = namesOf(runs);
  const end = (name) => (run) => last(run.series[name]);
  const accuracies = search
    ? [["upper accuracy", end("upper/accuracy")], ["lower accuracy", end("lower/accuracy")], ...(TRUTH ? [["true test accuracy", end(TRUTH)]] : [])]
    : [["test accuracy", (run) => run.test.accuracy], ["balanced accuracy", (run) => run.answers?.balanced_accuracy], ["held-out accuracy", end("holdout/accuracy")], ["train accuracy", end("train/accuracy")]].filter(([, of]) => runs.some((run) => of(run) != null));
  const datasets = [...new Set(runs.map(({ dataset }) => dataset))];
  const skips = (run) => CELLS.map(([cell]) => whole(end(`cells/skip_connections_${cell}`)(run))).join(" + ");
  const rest = [
    ...(datasets.length > 1 ? [["data set", (run) => run.dataset]] : []),
    ["seed", (run) => `${run.seed}`], ["epochs", (run) => (last(run.epochs) === run.num_epochs ? `${run.num_epochs}` : `${last(run.epochs)} of ${run.num_epochs}`)],
    ...(search ? [["skips", skips]] : []), ["weights, M", (run) => millions(run.size.weights)], ["multiply-adds, M", (run) => millions(run.size.multiply_adds)],
    ["time, h:m:s", (run) => duration(run.time_s)], ...(runs.some(memory) ? [["peak memory, GB", (run) => memory(run) ?? "–"]] : []),
  ];
  const columns = [["run"], ...[...accuracies, ...rest].map(([name]) => [name, "num"])];
  const rows = runs.map((run, index) => [[swatch(...lineOf(index)), names[index]], ...accuracies.map(([, of]) => percent(of(run))), ...rest.map(([, of]) => of(run))]);
  const footer = datasets.map((dataset) => [dataset, runs.filter((run) => run.dataset === dataset && run.finished)]).filter(([, those]) => those.length)
    .map(([dataset, those]) => [`mean ± spread of ${those.length}${datasets.length > 1 ? `, ${dataset}` : ""}`, ...accuracies.map(([, of]) => meanAndSpread(those.map(of))), ...rest.map(() => "")]);

  const differ = differences(names);
  page.append(
    header(`${search ? "Searches" : "Final networks"} on ${datasets.join(", ")}`, `${runs.length} runs compared`),
    ...heading("Runs", `Accuracies after the last epoch; the spread is the standard deviation over the finished runs${datasets.length > 1 ? " of a data set" : ""}.${search ? ` Weights and multiply-adds as a final network (${NETWORK}, CIFAR-10).` : ""}${differ.length ? "" : " All flags except seed and name are the same."}`),
    el("section", { class: "card" }, table(columns, rows, { footer })),
    ...differ,
    ...heading("Epochs"),
    el("div", { class: "grid" }, overlays(names)),
    ...(search ? agreement() : []),
    ...(search ? sizes(runs.map((run, index) => ({ ...run, name: names[index] }))) : []).flat(Infinity),
  );
}

/** Charts with one line per run. */
function overlays(names) {
  const longest = Math.max(...runs.map(({ epochs }) => last(epochs)));
  const epochs = Array.from({ length: longest }, (_, index) => index + 1);
  const overlaid = (title, unit, name, format, options) => {
    const lines = runs.map((run, index) => {
      const values = new Map(run.epochs.map((epoch, at) => [epoch, run.series[name][at]]));
      const [variable, dash] = lineOf(index);
      return [names[index], variable, epochs.map((epoch) => values.get(epoch) ?? null), dash];
    }).filter(([, , values]) => there(values));
    return lines.length ? chart(title, unit, epochs, lines, format, options) : null;
  };
  return runs[0].kind === "search"
    ? [overlaid("Upper accuracy", "of the supernet", "upper/accuracy", percent, ACCURACY), overlaid("Upper loss", "cross entropy, nats", "upper/loss", fixed(3)),
      overlaid("Lower accuracy", "of the supernet", "lower/accuracy", percent, ACCURACY), overlaid("Lower loss", "cross entropy, nats", "lower/loss", fixed(3)),
      TRUTH ? overlaid("True test accuracy", `of the derived cell on ${ranked}`, TRUTH, percent, ACCURACY) : null,
      ...CELLS.map(([cell, title]) => overlaid(`Entropy, ${title.toLowerCase()}`, "nats", `cells/entropy_${cell}_nats`, fixed(4))),
      ...CELLS.map(([cell, title]) => overlaid(`Skip connections, ${title.toLowerCase()}`, "in the derived cell", `cells/skip_connections_${cell}`, fixed(0), COUNT))]
    : [overlaid("Train accuracy", "of the final network", "train/accuracy", percent, ACCURACY), overlaid("Train loss", "cross entropy, nats", "train/loss", fixed(3)),
      overlaid("Held-out accuracy", "of the final network", "holdout/accuracy", percent, ACCURACY), overlaid("Held-out loss", "cross entropy, nats", "holdout/loss", fixed(3))];
}

/** Flags that are not the same in all runs, without those that say how a run is called and where it is computed. */
function differences(names) {
  const flags = runs.map((run) => new Map(run.config.flatMap(([, rows]) => rows.map(([flag, value]) => [flag, value]))));
  const apart = ["--name", "--seed", "--run-dir", "--device", "--checkpoint-minutes", "--max-bad-steps"];
  const differ = [...flags[0].keys()].filter((flag) => !apart.includes(flag) && new Set(flags.map((values) => values.get(flag))).size > 1);
  if (!differ.length) return [];
  const columns = [["run"], ...differ.map((flag) => [flag, "num flag"])];
  return [...heading("What differs", "These flags differ between the runs, so the spread does not come from the seeds alone."),
    el("section", { class: "card" }, table(columns, flags.map((values, index) => [names[index], ...differ.map((flag) => values.get(flag))]), { classes: "narrow" }))];
}

function agreement() {
  const note = "The number of runs whose last cells have this edge with this primitive. Framed: all of them.";
  if (new Set(runs.map((run) => last(run.cells[CELLS[0][0]]).length)).size > 1) {
    return heading("Where the cells agree", "The cells have different numbers of nodes, so they cannot be compared.");
  }
  const cards = CELLS.map(([cell, title]) => {
    const counts = new Map();
    const nodes = ends(last(runs[0].cells[cell]));
    for (const run of runs) last(run.cells[cell]).forEach(([primitive, source], index) => {
      const key = `${source}-${nodes[index]}`;
      if (!counts.has(key)) counts.set(key, new Map());
      counts.get(key).set(primitive, (counts.get(key).get(primitive) ?? 0) + 1);
    });
    const order = [...counts.keys()].sort((a, b) => a.split("-")[1] - b.split("-")[1] || a.split("-")[0] - b.split("-")[0]);
    const shared = [...counts.values()].flatMap((of) => [...of.values()]).filter((count) => count === runs.length).length;
    const columns = primitives.filter((primitive) => [...counts.values()].some((of) => of.has(primitive)) || primitive !== "none");
    const rows = order.map((key) => [key, arrow(key),
      [...columns.map((primitive) => counts.get(key).get(primitive) ?? 0), [...counts.get(key).values()].reduce((sum, count) => sum + count, 0)].map((count, column) =>
        [count ? `${count}/${runs.length}` : "·", count / runs.length, count === runs.length && column < columns.length, `${words(columns[column] ?? "any")}, ${arrow(key)}`])]);
    return el("section", { class: "card" }, el("h3", {}, title, " ", el("small", {}, `${shared} of ${last(runs[0].cells[cell]).length} edges are the same in all runs`)), heatTable([...columns, "any"], rows));
  });
  return [...heading("Where the cells agree", note), el("div", { class: "grid" }, cards)];
}
