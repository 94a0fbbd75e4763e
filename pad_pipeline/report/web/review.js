"use strict";
// The review: shows the regions of a random sample one by one, and takes a verdict on each.

const review = { sample: [], at: 0, history: [], cards: new Map(), card: null, frame: null, hidden: false, population: 0 };

const regionAt = () => review.card.regions[review.sample[review.at][2]];

// Until the next sample is drawn, no key gives a verdict on the old one.
function clearReview() {
  Object.assign(review, { sample: [], at: 0, history: [], population: 0 });
  showReview("Drawing a sample…");
}

// Begin with a sample: [rank, image, region], of `population` regions. Go on at the first region without a verdict.
async function startReview(sample, population, current) {
  const images = new Map();
  for (const [, image] of sample) if (!images.has(image)) images.set(image, loadCard(image));
  const cards = new Map();
  for (const [image, card] of images) cards.set(image, await card);
  if (!current()) return;
  Object.assign(review, { sample, population, cards, history: [] });
  goOn(0);
}

// Show the next region without a verdict, from a place on.
function goOn(from) {
  const places = review.sample.map((_, place) => (from + place) % review.sample.length);
  review.at = places.find((place) => !verdictAt(place)) ?? review.sample.length;
  showReview();
}

function verdictAt(place) {
  const [, image, region] = review.sample[place], card = review.cards.get(image);
  return verdictOn(card.key, region, card.regions[region].label);
}

function showReview(instead = "No region passes the filter.") {
  const { sample, at } = review, done = at >= sample.length;
  for (const choice of document.querySelectorAll("[data-verdict]")) choice.disabled = done;
  $("undo").disabled = !review.history.length && at === 0;
  $("review-stage").replaceChildren();
  showProgress();
  if (done) {
    review.card = review.frame = null;
    $("review-label").textContent = sample.length ? "All regions of this sample have a verdict." : instead;
    return;
  }
  const [, image, number] = sample[at];
  review.card = review.cards.get(image);
  const region = regionAt();
  $("review-label").replaceChildren(swatch(region.label), element("bdi", {}, region.label));
  const layers = new Set(review.hidden ? [] : ["boxes", "masks"]);
  review.frame = drawFrame(review.card, review.card.image, facts.patches, layers, (one) => one === region);
  review.frame.querySelector(".readout").remove(); // it shows scores, which could influence the verdict
  review.frame.svg.setAttribute("aria-label", `${region.label}: region ${number + 1} of ${review.card.regions.length} in ${review.card.id}`);
  $("review-stage").append(review.frame, zoomable(review.frame));
  const [left, top, right, bottom] = region.box;
  review.frame.target = [(left + right) / 2, (top + bottom) / 2]; // keys and buttons zoom into the region
  review.frame.redraw();
  const next = sample[at + 1];
  if (next) new Image().src = review.cards.get(next[1]).image;
}

function showProgress() {
  const { sample, at } = review, counts = Object.fromEntries(VERDICTS.map((name) => [name, 0]));
  for (let place = 0; place < sample.length; place++) {
    const verdict = verdictAt(place);
    if (verdict) counts[verdict]++;
  }
  const judged = counts.right + counts["wrong label"] + counts["wrong mask"];
  $("progress").textContent = sample.length ? `${Math.min(at + 1, sample.length)} of ${sample.length}` : "";
  $("population").textContent = `drawn at random from ${many(review.population, "region")}`;
  $("tallies").textContent = VERDICTS.map((name) => `${counts[name]} ${name}`).join(" · ");
  $("precision").textContent = "";
  if (judged) {
    const [low, high] = wilson(counts.right, judged).map((end) => Math.round(100 * end));
    $("precision").textContent = `${share(counts.right, judged)} right (95% interval: ${low}% to ${high}%), without the unsure ones`;
  }
  $("save-verdicts").disabled = !verdicts.size;
  $("all-verdicts").textContent = `${many(verdicts.size, "verdict")} on this run in this browser`;
  $("not-kept").textContent = store.problem ? `This browser keeps no verdicts (${store.problem}): save the file before you close it.` : "";
}

function giveVerdict(verdict) {
  if (review.at >= review.sample.length || !review.card) return;
  const region = regionAt(), [, , number] = review.sample[review.at];
  setVerdict({
    run: facts.identity, key: review.card.key, region: number, label: region.label, score: region.score,
    label_score: region.label_score, predicted_iou: region.iou, patches: region.covered / 255, verdict, seed: state.seed,
  });
  review.history.push(review.at);
  goOn(review.at + 1);
}

// Go back to the region of the last verdict, or to the previous one, and forget its verdict.
function undoVerdict() {
  if (!review.history.length && !review.at) return;
  review.at = review.history.pop() ?? review.at - 1;
  const [, image, region] = review.sample[review.at];
  removeVerdict(review.cards.get(image).key, region);
  showReview();
}

function reviewKey(event) {
  const choice = VERDICTS[Number(event.key) - 1];
  if (choice) giveVerdict(choice);
  else if (event.key === "u" || event.key === "Backspace") undoVerdict();
  else if (event.key === "h") {
    review.hidden = !review.hidden;
    showReview();
  } else return zoomKey(review.frame, event);
  return true;
}

function listenToReview() {
  for (const choice of document.querySelectorAll("[data-verdict]")) {
    choice.addEventListener("click", () => giveVerdict(choice.dataset.verdict));
  }
  $("undo").addEventListener("click", undoVerdict);
  $("save-verdicts").addEventListener("click", saveVerdicts);
  for (const name of ["seed", "sample"]) {
    $(name).addEventListener("change", () => go({ [name]: Math.max(0, Math.floor(Number($(name).value)) || 0) }));
  }
  $("read-verdicts").addEventListener("change", async () => {
    const [file] = $("read-verdicts").files;
    if (!file) return;
    $("read-result").textContent = takeVerdicts(file.name, await file.text());
    $("read-verdicts").value = "";
    goOn(0);
  });
}
