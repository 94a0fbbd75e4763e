"use strict";
// Starts the page, and brings the state in the address to the screen.

const LETTERS = { t: "tags", b: "boxes", m: "masks", p: "patches" };

const CHOICES = ["status", "sort", "only"];

let turn = 0; // of `apply`; an earlier one that is still at work stops
let shownFor = "", results = null; // the filter that was last scanned for, and its tally

async function apply() {
  state = readState();
  showControls();
  const mine = ++turn, current = () => turn === mine;
  drag++; // a count for a slider that is still at work stops
  if (!["gallery", "review"].includes(state.tab)) return;
  const wanted = { ...state, ...(state.tab === "review" ? { sampled: state.sample, only: "" } : { sampled: 0 }) };
  try {
    const tally = await scanned(wanted, current);
    if (!current()) return;
    if (wanted.sampled) await startReview(tally.sample, tally.shown, current);
    else await showPage(tally && tally.found, current);
    if (current()) document.body.dataset.ready = location.hash; // for programs that wait until the page is drawn
  } catch (error) {
    $(state.tab === "review" ? "review-label" : "found").textContent = error.message;
  }
}

// The tally of a filter, or null if it lets everything through. It is shown while it grows.
async function scanned(wanted, current) {
  const { q, label, status, least: positions, sort, only, seed, sampled } = wanted;
  const flags = status === "flagged" ? [...flaggedKeys()] : [];
  const filter = JSON.stringify([q, label, status, positions, sort, only, seed, sampled, flags]);
  if (filter !== shownFor) {
    results = null;
    shownFor = "";
    $("kept").textContent = "";
    if (sampled) clearReview();
    if (!isWhole(wanted)) {
      let early = !wanted.sort && !sampled;
      results = await scan(wanted, async (tally, done) => {
        if (!current()) return false;
        showKept(tally, label, done);
        if (done === 1) return true;
        $("found").textContent = `${counted(tally.found.length)} found, searching…`;
        if (early && tally.found.length >= state.page * facts.page_size) {
          early = false;
          await showPage(tally.found, current);
        }
        return true;
      });
      if (!results) return null;
    }
    shownFor = filter;
    const chosen = labelNumbers.has(label);
    drawHistograms(chosen ? results.histograms : facts.histograms, chosen ? label : "all labels");
  }
  showResults();
  return results;
}

function showResults() {
  if (results) showKept(results, state.label);
  else if (facts.second) showKept({ only: facts.second }, "");
  else $("kept").textContent = "";
}

// Hide regions at once while a slider moves, and count the others. The images change when the slider is released.
let drag = 0; // of `countSoon`
const redrawSoon = oncePerFrame(() => {
  redrawAll($("cards"));
  redrawAll($("detail"));
});
const countSoon = oncePerFrame(async () => {
  const mine = ++drag;
  if (JSON.stringify(least) === JSON.stringify(state.least)) return showResults();
  const wanted = { ...state, q: "", status: "", sort: "", least, sampled: 0 };
  await scan(wanted, (tally, done) => {
    if (mine !== drag) return false;
    showKept(tally, state.label, done);
    return true;
  });
});

function onDrag(positions) {
  if (!setLeast(positions)) return;
  redrawSoon();
  countSoon();
}

// Show the state at all controls.
function showControls() {
  for (const link of document.querySelectorAll("[data-tab]")) {
    $(link.dataset.tab).hidden = link.dataset.tab !== state.tab;
    if (link.dataset.tab === state.tab) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (["gallery", "review"].includes(link.dataset.tab)) link.href = addressOf({ tab: link.dataset.tab });
  }
  $("filters").hidden = !["gallery", "review"].includes(state.tab);
  // Below the review, so that image, label and buttons fit on a small screen.
  if (state.tab === "review" && $("review").nextElementSibling !== $("filters")) $("review").after($("filters"));
  if (state.tab === "gallery" && $("gallery").previousElementSibling !== $("filters")) $("gallery").before($("filters"));
  for (const part of document.querySelectorAll("[data-only]")) part.hidden = part.dataset.only !== state.tab;
  for (const name of ["q", "label", "seed", "sample"]) if ($(name) !== document.activeElement) $(name).value = state[name];
  for (const name of CHOICES) if ($(name)) $(name).value = state[name];
  for (const box of document.querySelectorAll("[data-show]")) box.checked = state.show.has(box.dataset.show);
  $("clear").hidden = !TEXTS.some((name) => state[name]) && !state.only && !isMoved(state.least);
  $("shuffle").hidden = state.sort !== "random";
  if (setLeast(state.least)) redrawAll(document);
}

function toggle(name) {
  const show = new Set(state.show);
  if (!show.delete(name)) show.add(name);
  go({ show }, false);
}

function listen() {
  let pause;
  for (const name of ["q", "label"]) {
    $(name).addEventListener("input", () => {
      clearTimeout(pause);
      pause = setTimeout(() => go({ [name]: $(name).value, page: 1 }, false), 150);
    });
  }
  $("filter").addEventListener("submit", (event) => event.preventDefault());
  for (const name of CHOICES) $(name)?.addEventListener("change", () => go({ [name]: $(name).value, page: 1 }));
  $("clear").addEventListener("click", () => {
    for (const name of ["q", "label"]) $(name).value = "";
    go({ q: "", label: "", status: "", only: "", least: NONE, page: 1 });
  });
  $("previous").addEventListener("click", () => turnPage(-1));
  $("next").addEventListener("click", () => turnPage(1));
  $("page").addEventListener("change", () => go({ page: Math.max(1, Number($("page").value) || 1) }));
  $("shuffle").addEventListener("click", () => go({ seed: Math.floor(Math.random() * 1e6), page: 1 }));
  $("save-flags").addEventListener("click", saveFlags);
  for (const box of document.querySelectorAll("[data-show]")) box.addEventListener("change", () => toggle(box.dataset.show));
  listenToSliders(onDrag);
  listenToDetail();
  listenToReview();
  window.addEventListener("hashchange", apply);
  const fit = oncePerFrame(() => fitAll(document));
  new ResizeObserver(fit).observe($("cards"));
  window.addEventListener("resize", fit);
  document.addEventListener("keydown", onKey);
}

// Keys act everywhere except where the user types. A slider takes the keys that move it, and no others.
function onKey(event) {
  const field = event.target.matches?.("input, select, textarea") ? event.target.type : "";
  const typing = field && !["checkbox", "range", "file"].includes(field);
  const moves = field === "range" && /^(Arrow|Page|Home|End)/.test(event.key);
  if (event.ctrlKey || event.metaKey || event.altKey || typing || moves) return;
  if (state.tab === "review" ? reviewKey(event) : state.tab === "gallery" && galleryKey(event)) event.preventDefault();
}

function galleryKey(event) {
  if (opened >= 0 && zoomKey(openedFrame(), event)) return true;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && opened >= 0) openDetail(opened + step);
  else if (step) turnPage(step);
  else if (LETTERS[event.key]) toggle(LETTERS[event.key]);
  else if (event.key === "f") return flagHere();
  else if (event.key === "/" && opened < 0) $("q").focus();
  else return false;
  return true;
}

// Flag the enlarged image, or the one whose card has the focus.
function flagHere() {
  const place = opened >= 0 ? opened : [...$("cards").children].indexOf(document.activeElement.closest(".card"));
  if (place < 0) return false;
  toggleFlag(cards[place].key);
  return true;
}

async function start() {
  try {
    facts = await load("facts");
  } catch (error) {
    $("gallery").hidden = $("filters").hidden = false;
    $("found").textContent = error.message;
    return;
  }
  labelNumbers = new Map(facts.labels.map(([label], number) => [label, number]));
  const common = [...facts.labels].sort((a, b) => b[1] - a[1]).slice(0, 5000);
  $("labels").append(...common.map(([label]) => element("option", { value: label })));
  document.body.classList.toggle("two", facts.second !== null);
  readVerdicts();
  listen();
  await apply();
}

start();
