"use strict";
// The sliders: the thresholds below which regions are hidden, the counts of the regions that stay, and the command that
// writes shards with these regions alone. A position is in percent, or a step of `facts.steps` for coverage.

const SLIDERS = {
  score: { option: "--min-score", of: (region) => region.score },
  label_score: { option: "--min-label-score", of: (region) => region.label_score },
  iou: { option: "--min-predicted-iou", of: (region) => region.iou },
  patches: { option: "--min-patches", of: (region) => region.covered / 255 },
};
const NAMES = Object.keys(SLIDERS);
const NONE = Object.fromEntries(NAMES.map((name) => [name, 0]));

let least = { ...NONE }; // positions of the sliders; while one is dragged, those of the address are older

const valueAt = (name, position) => (name === "patches" ? facts.steps[position] : position / 100);
const mostOf = (name) => (name === "patches" ? lastStep() : 100);
const lastStep = () => facts.steps.filter((step) => step <= facts.patches ** 2).length - 1;
const isMoved = (positions) => NAMES.some((name) => positions[name] > 0);
const textOf = (name, position) => (name === "patches" ? String(valueAt(name, position)) : short(position / 100));

function readLeast(found) {
  return Object.fromEntries(NAMES.map((name) => {
    const value = Math.max(0, Number(found.get(name)) || 0);
    const position = name === "patches" ? facts.steps.findLastIndex((step) => step <= value) : Math.round(value);
    return [name, Math.min(position, mostOf(name))];
  }));
}

function writeLeast(made, positions) {
  for (const name of NAMES) {
    if (positions[name]) made.set(name, name === "patches" ? valueAt(name, positions[name]) : positions[name]);
  }
}

// Whether a card's region stays.
const stays = (region) => NAMES.every((name) => !least[name] || SLIDERS[name].of(region) >= valueAt(name, least[name]));

// Whether a card's region is drawn: it stays, and it is only in one of two runs if such regions are chosen.
const isDrawn = (region) => stays(region) && (!state.only || region.only);

// The conditions on the columns of the index: name and lowest number. They are exact, see index.py.
function limitsOf(positions) {
  return NAMES.filter((name) => positions[name]).map((name) =>
    [name, name === "patches" ? Math.ceil(255 * valueAt(name, positions[name])) : 10 * positions[name]]);
}

// Set the sliders to positions. Return whether one has changed.
function setLeast(positions) {
  const changed = NAMES.some((name) => least[name] !== positions[name]);
  least = { ...positions };
  for (const name of NAMES) {
    const slider = $(name);
    if (Number(slider.value) !== least[name]) slider.value = least[name];
    const text = textOf(name, least[name]);
    slider.setAttribute("aria-valuetext", name === "patches" ? many(Number(text), "patch").replace("patchs", "patches") : text);
    $(`${name}-least`).textContent = text;
  }
  for (const bar of document.querySelectorAll(".histogram rect")) {
    bar.classList.toggle("below", Number(bar.dataset.last) < least[bar.dataset.of]);
  }
  const options = NAMES.filter((name) => least[name]).map((name) => `${SLIDERS[name].option} ${textOf(name, least[name])}`);
  $("retarget").textContent = ["pad retarget", facts.run, ...options, "--out", facts.sure].join(" ");
  $("command").hidden = !options.length;
  if (changed) $("copied").textContent = "";
  return changed;
}

// Draw a histogram above each slider: `counts` of regions by name.
function drawHistograms(counts, what) {
  for (const name of NAMES) {
    const size = name === "patches" ? lastStep() + 1 : counts[name].length;
    const bins = Array.from(counts[name]).slice(0, size);
    const most = Math.max(1, ...bins), wide = 100 / size, percent = 100 / size;
    const bars = bins.flatMap((count, bin) => {
      if (!count) return [];
      const high = Math.max(1.5, 30 * count / most);
      const range = name === "patches"
        ? `${facts.steps[bin]}${bin + 1 < size ? ` to ${facts.steps[bin + 1]}` : " or more"} patches`
        : `${short(bin * percent / 100)} to ${short((bin + 1) * percent / 100)}`;
      // A bar is below the threshold if its last position is.
      const last = name === "patches" ? bin : Math.round((bin + 1) * percent) - 1;
      return [element("svg:rect", {
        x: bin * wide + 0.1 * wide, width: 0.8 * wide, y: 30 - high, height: high, "data-of": name,
        "data-last": bin + 1 === size ? mostOf(name) : last,
      }, element("svg:title", {}, `${range}: ${counted(count)}`))];
    });
    const total = bins.reduce((sum, count) => sum + count, 0);
    $(`${name}-histogram`).setAttribute("aria-label", `${what}: ${many(total, "region")}`);
    $(`${name}-histogram`).replaceChildren(...bars);
  }
  setLeast(least);
}

// Say how many regions, images and labels stay, overall and for the chosen label. `done`: 0..1, the part that is counted.
function showKept(tally, label, done = 1) {
  const parts = [];
  if (isMoved(least)) {
    const { regions, images, labels } = tally;
    parts.push(`${counted(regions)} of ${many(facts.regions, "region")} (${share(regions, facts.regions)}) kept, in ` +
      `${counted(images)} of ${many(facts.ok, "image")}, with ${counted(labels)} of ${many(facts.labels.filter(([, count]) => count).length, "label")}`);
  }
  if (label && labelNumbers.has(label)) {
    const { regions, images, allRegions, allImages } = tally.chosen;
    parts.push(isMoved(least)
      ? `“${label}”: ${counted(regions)} of ${many(allRegions, "region")}, in ${counted(images)} of ${many(allImages, "image")}`
      : `“${label}”: ${many(allRegions, "region")} in ${many(allImages, "image")}`);
  }
  if (facts.second) {
    const { first, second, images } = tally.only;
    const left = facts.images - facts.second.compared;
    parts.push(`Only in ${facts.names[0]}: ${many(first, "region")}, only in ${facts.names[1]}: ${many(second, "region")}, ` +
      `in ${many(images, "image")}${left ? ` (${many(left, "image")} not compared)` : ""}`);
  }
  const partial = done < 1 && parts.length ? `${Math.round(100 * done)}% counted: ` : "";
  $("kept").textContent = partial + parts.join(" · ");
}

function listenToSliders(onDrag) {
  for (const name of NAMES) {
    $(name).max = mostOf(name);
    $(name).addEventListener("input", () => { onDrag({ ...least, [name]: Number($(name).value) }); });
    // The back button returns to the state before the first slider was moved, and not to each step of a slider.
    $(name).addEventListener("change", () =>
      go({ least: { ...least, [name]: Number($(name).value) }, page: 1 }, !isMoved(readState().least)));
  }
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("retarget").textContent);
      $("copied").textContent = "copied";
    } catch {
      getSelection().selectAllChildren($("retarget"));
      $("copied").textContent = "selected: copy it with the keyboard";
    }
  });
}
