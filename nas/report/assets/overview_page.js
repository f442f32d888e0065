"use strict";

/** Everything that one command did: the searches (`runs`), the cells that were compared, and the final network. */
function overviewPage(about) {
  const { final, interval: [low, high], conclusion, cells } = about;
  const exported = cells.find((row) => row.exported);
  const total = about.times.reduce((sum, [, , seconds]) => sum + seconds, 0);
  page.append(
    header(`From search to network on ${final.dataset}`, about.name, [plural(runs.length, "search", "searches"), plural(cells.length, "cell"), when(about.date)]),
    tiles([
      ["test accuracy", percent(final.test.accuracy)], ["95 % interval", `${(100 * low).toFixed(1)} – ${(100 * high).toFixed(1)} %`],
      ["always guessing the largest class", percent(final.answers.majority_accuracy)],
      ["weights", ...counted(final.size.weights)], ["multiply-adds", ...counted(final.size.multiply_adds)],
      ["time, h:m:s", duration(total)],
    ]),
    el("p", { class: "finding" }, conclusion ?? "No random cells were trained, so nothing says whether the searches beat chance."),
    ...heading("The exported cell", exported ? `From: ${exported.source}. The final network is made of it.` : "The final network is made of it."),
    el("div", { class: "grid" }, cellCards(final)),
    ...examplesOf(about),
    ...heading("All cells", `Each was trained briefly, and measured on held-out images${about.balanced ? " by balanced accuracy" : ""}; ± is the standard deviation over the seeds. Weights and multiply-adds are those of the brief network. The exported cell is marked.`),
    cellTable(cells),
    ...heading("Searches", "One line for each search. The upper level learns the alphas, the lower level the weights."),
    el("div", { class: "grid" }, overlays(namesOf(runs))),
    ...heading("Final training", "On all training images. The test set is used once, after the last epoch."),
    el("div", { class: "grid" }, chartsOf(final)),
    ...answersOf(final),
    ...heading("Time", "What all of it took, added up over all runs."),
    timeCard(about.times, total),
    ...use(final).flat(Infinity),
  );
}

function cellTable(cells) {
  const rows = cells.map((row) => ({ own: row.exported, cells: [
    row.exported ? [row.source, el("small", {}, " exported")] : row.source,
    row.spread == null ? percent(row.score) : `${(100 * row.score).toFixed(1)} ± ${(100 * row.spread).toFixed(1)} %`,
    whole(row.epochs), millions(row.weights), millions(row.multiply_adds)] }));
  return el("section", { class: "card" }, table([["cell"], ["held-out accuracy", "num"], ["epochs", "num"], ["weights, million", "num"], ["multiply-adds, million", "num"]], rows));
}

/** A bar of the shares, and the table that names them. */
function timeCard(times, total) {
  const share = (seconds) => (total ? seconds / total : 0);
  const bar = el("div", { class: "shares", "aria-hidden": true }, times.map(([what, , seconds], index) => {
    const part = el("span", { title: `${what}: ${percent(share(seconds))}` });
    part.style.flexGrow = share(seconds);
    part.style.background = `var(--run-${index})`;
    return part;
  }));
  const key = (what, index) => { const dot = el("span", { class: "dot" }); dot.style.background = `var(--run-${index})`; return [dot, what]; };
  const rows = times.map(([what, number, seconds], index) => [key(what, index), number ? whole(number) : "", (seconds / 60).toFixed(1), percent(share(seconds))]);
  return el("section", { class: "card" }, bar, table([["what"], ["runs", "num"], ["minutes", "num"], ["share", "num"]], rows, { footer: [["total", "", (total / 60).toFixed(1), ""]] }),
    times.some(([, number]) => !number) ? el("p", { class: "over" }, "The rest: what passed between the runs, such as starting them and reading images.") : null);
}

function examplesOf({ examples, why_none: why }) {
  if (!examples.length) return heading("Examples", `No test images are shown: ${why}`);
  const numWrong = examples.filter(({ right }) => !right).length;
  return [
    ...heading("Examples", `Test images, and the likeliest classes as the final network sees them. ${numWrong ? "The last ones were chosen because the network is wrong there; errors are marked." : "No error was found."}`),
    el("div", { class: "examples" }, examples.map(({ picture, truth, right, likely }) => el("figure", { class: right ? "card" : "card wrong" },
      el("img", { src: picture, alt: `test image of the class “${truth}”` }),
      el("figcaption", {}, el("div", { class: "truth" }, el("span", { title: truth }, truth), right ? null : el("small", {}, "wrong")),
        el("ol", {}, likely.map(([name, probability]) => {
          const line = el("li", { class: name === truth ? "true" : false }, el("span", { title: name }, name), el("span", {}, percent(probability)));
          line.style.setProperty("--share", `${100 * probability}%`);
          return line;
        })))))),
  ];
}
