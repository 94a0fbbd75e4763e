"use strict";
// The state of the page is in the address behind #, so that links and the browser's back button work.

const TABS = ["gallery", "review", "statistics", "run"];
const SHOWS = ["tags", "boxes", "masks", "patches"];
const SORTS = ["highest", "lowest", "random"];
const ONLY = ["either", "first", "second"]; // regions that only one of two runs has
const TEXTS = ["q", "label", "status"];

let facts, labelNumbers; // labelNumbers: label -> its number in the index
let state;

function readState() {
  const found = new URLSearchParams(location.hash.slice(1));
  const whole = (name, least, most, missing) =>
    Math.min(most, Math.max(least, parseInt(found.get(name) ?? missing, 10) || least));
  const one = (name, allowed) => (allowed.includes(found.get(name)) ? found.get(name) : allowed[0]);
  return {
    tab: one("tab", TABS),
    ...Object.fromEntries(TEXTS.map((name) => [name, found.get(name) || ""])),
    least: readLeast(found),
    sort: one("sort", ["", ...SORTS]),
    only: facts.second ? one("only", ["", ...ONLY]) : "",
    seed: whole("seed", 0, 0xffffffff, 1),
    sample: whole("sample", 1, 1000, 50),
    page: whole("page", 1, Infinity, 1),
    show: new Set((found.get("show") ?? "tags,boxes,masks").split(",").filter((name) => SHOWS.includes(name))),
  };
}

function addressOf(changes, from = state) {
  const wanted = { ...from, ...changes };
  const made = new URLSearchParams();
  if (wanted.tab !== "gallery") made.set("tab", wanted.tab);
  for (const name of [...TEXTS, "sort", "only"]) if (wanted[name]) made.set(name, wanted[name]);
  writeLeast(made, wanted.least);
  if (wanted.seed !== 1 || wanted.tab === "review") made.set("seed", wanted.seed);
  if (wanted.sample !== 50) made.set("sample", wanted.sample);
  if (wanted.page > 1) made.set("page", wanted.page);
  const show = SHOWS.filter((name) => wanted.show.has(name)).join(",");
  if (show !== "tags,boxes,masks") made.set("show", show);
  return `#${made}`;
}

// Change the state. `step`: whether the browser's back button returns to the earlier state. The address is newer than
// `state` if keys come faster than the browser's events.
function go(changes, step = true) {
  const address = addressOf(changes, readState());
  if (address === (location.hash || "#")) return;
  if (step) location.hash = address;
  else location.replace(address);
}

// A link to the images with regions of a label.
function labelLink(label) {
  return element("a", { href: addressOf({ tab: "gallery", q: "", label, page: 1 }) }, element("bdi", {}, label));
}
