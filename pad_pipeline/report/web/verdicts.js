"use strict";
// The verdicts of a review: kept in the browser for this run, saved as JSON Lines, read back from such a file.

const VERDICTS = ["right", "wrong label", "wrong mask", "unsure"];
const NUMBERS = ["score", "label_score", "predicted_iou", "patches"];
const FIELDS = ["run", "key", "region", "label", ...NUMBERS, "verdict", "seed"];

const verdictPrefix = () => `pad-verdict ${facts.store} `;
const verdictName = (key, region) => `${region} ${key}`;

let verdicts = new Map(); // name -> verdict

// Return the verdict in a text, or null if there is none that can be used.
function parseVerdict(text) {
  let found = null;
  try {
    found = JSON.parse(text);
  } catch {
    return null;
  }
  const isText = (name) => typeof found[name] === "string";
  const usable = found && typeof found === "object" && ["run", "key", "label"].every(isText) &&
    NUMBERS.every((name) => Number.isFinite(found[name])) &&
    Number.isInteger(found.region) && found.region >= 0 && VERDICTS.includes(found.verdict);
  return usable ? Object.fromEntries(FIELDS.map((name) => [name, found[name] ?? null])) : null;
}

function readVerdicts() {
  verdicts = new Map();
  for (const [name, text] of store.entries(verdictPrefix())) {
    const found = parseVerdict(text);
    if (found?.run === facts.identity) verdicts.set(name, found);
  }
}

function setVerdict(found) {
  const name = verdictName(found.key, found.region);
  verdicts.delete(name); // the latest verdict is the last line of the file
  verdicts.set(name, found);
  store.set(verdictPrefix() + name, JSON.stringify(found));
}

function removeVerdict(key, region) {
  verdicts.delete(verdictName(key, region));
  store.remove(verdictPrefix() + verdictName(key, region));
}

// The verdict on a region. One on another label is not on this region: the file was of a run with the same settings.
function verdictOn(key, region, label) {
  const found = verdicts.get(verdictName(key, region));
  return found?.label === label ? found.verdict : null;
}

const saveVerdicts = () => save("verdicts.jsonl", [...verdicts.values()].map((one) => `${JSON.stringify(one)}\n`).join(""));

// Take the verdicts of a file, unless it is of another run. Return a sentence about it.
function takeVerdicts(name, text) {
  const lines = text.replace(/^\ufeff/, "").split("\n"), found = [], broken = [];
  for (const [number, line] of lines.entries()) {
    if (!line.trim()) continue;
    const verdict = parseVerdict(line);
    if (!verdict) broken.push(number + 1);
    else if (verdict.run !== facts.identity) {
      return `${name} was not read: line ${number + 1} is of run ${verdict.run.slice(0, 40)}, and this report shows run ${facts.identity}.`;
    } else found.push(verdict);
  }
  for (const verdict of found) setVerdict(verdict);
  const some = broken.slice(0, 10).join(", ") + (broken.length > 10 ? ", …" : "");
  const problem = broken.length ? ` ${many(broken.length, "line")} could not be read: ${some}.` : "";
  return `${many(found.length, "verdict")} read from ${name}.${problem}`;
}

// Wilson's 95% interval for a share of `part` in `whole`: lower and upper end.
function wilson(part, whole) {
  const z = 1.959964, rate = part / whole, scale = 1 + z * z / whole;
  const middle = rate + z * z / (2 * whole);
  const width = z * Math.sqrt(rate * (1 - rate) / whole + z * z / (4 * whole * whole));
  return [Math.max(0, (middle - width) / scale), Math.min(1, (middle + width) / scale)];
}
