"use strict";
// Flagged images: kept in the browser for this run, and saved as a list of keys for `pad filter --keys`.

const flagPrefix = () => `pad-flag ${facts.store} `;
const flaggedKeys = () => new Set(store.entries(flagPrefix()).map(([key]) => key));

function setFlag(key, flagged) {
  if (flagged) store.set(flagPrefix() + key, "1");
  else store.remove(flagPrefix() + key);
  showFlags();
}

// Show the flags at all buttons, and the number of flagged images.
function showFlags() {
  const keys = flaggedKeys();
  for (const flag of document.querySelectorAll(".flag")) {
    flag.setAttribute("aria-pressed", keys.has(flag.dataset.key));
  }
  $("flags").hidden = !keys.size && !store.problem;
  $("flagged").textContent = store.problem
    ? `This browser keeps no flags and verdicts (${store.problem}).`
    : `${many(keys.size, "image")} flagged`;
  $("save-flags").hidden = !keys.size;
}

function flagButton(card) {
  const flag = button("⚑", `Flag ${card.id}`, () => toggleFlag(card.key));
  flag.className = "flag";
  flag.dataset.key = card.key;
  flag.setAttribute("aria-pressed", "false");
  return flag;
}

const toggleFlag = (key) => setFlag(key, !flaggedKeys().has(key));
const saveFlags = () => save("keys.txt", [...flaggedKeys()].sort().map((key) => `${key}\n`).join(""));
