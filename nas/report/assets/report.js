"use strict";

function finalPage(run) {
  const measured = "accuracy" in run.test;
  page.append(
    header(`Final network on ${run.dataset}`, run.name, factsOf(run)),
    tiles([
      ["test accuracy", measured ? percent(run.test.accuracy) : run.skips_test ? null : "–", measured ? "" : "after the last epoch"],
      ["balanced accuracy", run.answers && percent(run.answers.balanced_accuracy)], ["always guessing the largest class", run.answers && percent(run.answers.majority_accuracy)],
      ["train accuracy", percent(last(run.series["train/accuracy"]))],
      ["held-out accuracy", there(run.series["holdout/accuracy"]) ? percent(last(run.series["holdout/accuracy"])) : null],
      ["weights", ...counted(run.size.weights)], ["multiply-adds", ...counted(run.size.multiply_adds)],
      ["time, h:m:s", duration(run.time_s)], ["memory, peak", memory(run), "GB"],
    ]),
    ...answersOf(run),
    ...heading("Cells"),
    el("div", { class: "grid" }, cellCards(run)),
    ...heading("Epochs", run.skips_test ? "The test set was not used." : "The test set is used once, after the last epoch."),
    el("div", { class: "grid" }, chartsOf(run)),
    ...[use(run), settings(run)].flat(Infinity),
  );
}

const wanted = location.hash.slice(1);
if (wanted === "dark" || wanted === "light") root.dataset.theme = wanted;
if (overview) overviewPage(overview);
else if (runs.length > 1) comparePage();
else if (runs[0].kind === "search") searchPage(runs[0]);
else finalPage(runs[0]);
charts.forEach(({ plot, draw }) => plot ?? draw());
root.dataset.ready = "";
