"use strict";
// Loads data files when they are needed. Only the latest are kept in memory.

const KEPT = 96; // data files in memory

const loaded = new Map(); // name -> promise of its value; the last entry is the latest one that was used
const arrived = new Map();
window.padData = (name, value) => arrived.set(name, value);

function load(name, keep = true, prepare = (value) => value) {
  const known = loaded.get(name);
  const value = known || new Promise((resolve, reject) => {
    const script = element("script", { src: `data/${name}.js` });
    const finish = () => {
      script.remove();
      if (!arrived.has(name)) return reject(new Error(`data/${name}.js can't be read: was the whole folder copied?`));
      resolve(prepare(arrived.get(name)));
      arrived.delete(name);
    };
    script.onload = script.onerror = finish;
    document.head.append(script);
  });
  loaded.delete(name);
  if (keep) loaded.set(name, value);
  value.catch(() => loaded.delete(name));
  if (loaded.size > KEPT) loaded.delete(loaded.keys().next().value);
  return value;
}

const padded = (number, digits = 6) => String(number).padStart(digits, "0");

function unpacked(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Kind(bytes.buffer);
}

// The columns of regions in a block of the index, see index.py.
function unpackedColumns(packed) {
  const kinds = { regions: Uint32Array, labels: Uint32Array, patches: Uint32Array, only: Uint8Array };
  const names = ["regions", "labels", "score", "label_score", "iou", "patches", "only"];
  return Object.fromEntries(names.map((name) => [name, unpacked(packed[name], kinds[name] || Uint16Array)]));
}

// A block of the index: the statuses of its images, and the numbers of their regions. `second`: those of the regions that
// are only in the second run, if there is one.
function loadBlock(block) {
  return load(`index-${padded(block)}`, true, ({ statuses, second, ...packed }) =>
    ({ statuses, ...unpackedColumns(packed), second: second && unpackedColumns(second) }));
}

const loadTexts = (block) => load(`text-${padded(block)}`, false);

// The card of image `number`, with its number and the path of its small copy.
async function loadCard(number) {
  const file = Math.floor(number / facts.page_size), place = number % facts.page_size;
  const card = (await load(`page-${padded(file)}`))[place];
  return { ...card, number, image: `images/${padded(file)}/${padded(place, 3)}.jpg` };
}
