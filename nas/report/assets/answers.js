"use strict";
const WORST = 100; // classes in the table, where there are more
const NUMBERED = 25; // classes whose squares in the confusion matrix have room for numbers

/** Accuracy per class and confusion matrix of a final network that was measured. */
function answersOf({ answers }) {
  if (!answers) return [];
  const { classes, num_images: images, num_correct: correct, confusion } = answers;
  const accuracy = (index) => correct[index] / images[index];
  const known = classes.map((_, index) => index).filter((index) => images[index]);
  const shown = known.length > WORST ? known.toSorted((a, b) => accuracy(a) - accuracy(b)).slice(0, WORST) : known;
  const better = answers.accuracy > answers.majority_accuracy || answers.majority_accuracy === 1;
  const guess = `Always guessing “${classes[answers.largest_class]}”, the largest class, would reach ${percent(answers.majority_accuracy)}${better ? "" : ": this network is no better"}.`;
  const rows = shown.map((index) => [classes[index], percent(accuracy(index)), whole(correct[index]), whole(images[index])]);
  return [
    ...heading("Classes", `Answers of the network on ${whole(known.reduce((sum, index) => sum + images[index], 0))} ${answers.measured_on} images. ${guess} The balanced accuracy is the mean over the classes.`),
    el("div", { class: confusion && classes.length > NUMBERED ? "stack" : "grid" },
      el("section", { class: "card" },
        el("h3", {}, "Accuracy of each class ", el("small", {}, shown.length < known.length ? `the ${WORST} worst of ${whole(known.length)}` : "")),
        table([["class"], ["accuracy", "num"], ["correct", "num"], ["images", "num"]], rows,
          { footer: [["balanced", percent(answers.balanced_accuracy), "", ""]], box: "scroll tall" })),
      confusion && confusionMatrix(classes, images, confusion)),
  ];
}

function confusionMatrix(classes, images, confusion) {
  const dense = classes.length > NUMBERED;
  const rows = confusion.map((row, index) => el("tr", {}, el("th", { scope: "row" }, el("span", {}, classes[index])), row.map((count, answer) => {
    const share = images[index] ? count / images[index] : 0;
    const square = el("td", { class: index === answer ? "kept" : false, title: `“${classes[index]}” answered as “${classes[answer]}”: ${whole(count)} of ${whole(images[index])}` }, dense ? null : count || "·");
    square.style.background = `color-mix(in srgb, var(--tint) ${Math.round(100 * share)}%, var(--card))`;
    return square;
  })));
  return el("section", { class: "card" },
    el("h3", {}, "Confusion matrix ", el("small", {}, "one row per class, one column per answer; colour: share of the row; framed: correct")),
    el("div", { class: "scroll" }, el("table", { class: `heat confusion${dense ? " dense" : ""}` },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "class"), classes.map((name) => el("th", { scope: "col", title: name }, el("span", {}, name))))),
      el("tbody", {}, rows))));
}
