"use strict";
// Goes through the index: finds the images that pass the filter, counts the regions that stay, draws random samples.

// A hash of three whole numbers, 32 bits, from the finalizer of MurmurHash3. Orders by it are random.
function mixed(seed, image, region) {
  let hash = seed >>> 0;
  for (const part of [image, region]) {
    hash = Math.imul(hash ^ part, 0x9e3779b1) + 0x7f4a7c15;
    hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
    hash ^= hash >>> 16;
  }
  return hash >>> 0;
}

function newTally() {
  const histograms = Object.fromEntries(NAMES.map((name) => [name, new Array(facts.histograms[name].length).fill(0)]));
  return {
    regions: 0, images: 0, labels: 0, // that stay
    chosen: { regions: 0, images: 0, allRegions: 0, allImages: 0 }, // of the chosen label: those that stay, and all
    histograms, // of the chosen label
    only: { first: 0, second: 0, images: 0 }, // regions that stay, of the chosen label, in one run only; their images
    found: [], // numbers of images that pass the filter
    ranks: [], // of these images, for the order
    shown: 0, // regions that stay, of the chosen label, in these images
    sample: [], // [rank, image, region], the lowest ranks first
  };
}

// Whether the filter lets every image through, in the run's order.
const isWhole = (wanted) =>
  !TEXTS.some((name) => wanted[name].trim()) && !wanted.sort && !wanted.only && !isMoved(wanted.least) && !wanted.sampled;

// Go through all blocks. `soon` is called after each with the tally so far and the part that is done; it returns false
// to stop. Return the tally, or null if stopped.
async function scan(wanted, soon) {
  const tally = newTally(), seen = new Uint8Array(facts.labels.length);
  const blocks = Math.ceil(facts.images / facts.block);
  const query = wanted.q.trim().toLowerCase(), flagged = wanted.status === "flagged" ? flaggedKeys() : null;
  const named = facts.labels.map(([name]) => query !== "" && name.toLowerCase().includes(query));
  const filter = {
    ...wanted, query, named, flagged, limits: limitsOf(wanted.least),
    label: wanted.label ? labelNumbers.get(wanted.label) ?? -1 : null,
  };
  for (let block = 0; block < blocks; block++) {
    const [index, texts] = await Promise.all([loadBlock(block), query || flagged ? loadTexts(block) : null]);
    scanBlock(index, texts, block * facts.block, filter, tally, seen);
    tally.labels = seen.reduce((sum, one) => sum + one, 0);
    if ((await soon(tally, (block + 1) / blocks)) === false) return null;
  }
  if (wanted.sort) {
    const order = tally.found.map((image, place) => [tally.ranks[place], image]);
    tally.found = order.sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([, image]) => image);
  }
  tally.sample = lowest(tally.sample, wanted.sampled || 0);
  return tally;
}

const lowest = (sample, size) => sample.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]).slice(0, size);

function scanBlock(index, texts, firstImage, filter, tally, seen) {
  const { label, limits, query, named, flagged, only } = filter;
  const restricted = label !== null || limits.length > 0 || filter.sampled;
  const passes = passesOf(index, limits), secondPasses = index.second && passesOf(index.second, limits);
  const kept = new Uint8Array(index.labels.length); // 1: it stays
  let end = 0, secondEnd = 0;
  for (let place = 0; place < index.statuses.length; place++) {
    const start = end;
    end += index.regions[place];
    let stay = 0, stayChosen = 0, chosen = 0, high = -1, low = 1001, matches = !query, onlyFirst = 0, onlySecond = 0;
    for (let region = start; region < end; region++) {
      const number = index.labels[region], isChosen = label === null || number === label;
      if (isChosen && label !== null) {
        chosen++;
        countInHistograms(tally.histograms, index, region);
      }
      if (!passes(region)) continue;
      kept[region] = 1;
      stay++;
      seen[number] = 1;
      if (named[number]) matches = true;
      if (!isChosen) continue;
      stayChosen++;
      onlyFirst += index.only[region];
      high = Math.max(high, index.score[region]);
      low = Math.min(low, index.score[region]);
    }
    if (index.second) {
      const secondStart = secondEnd;
      secondEnd += index.second.regions[place];
      for (let region = secondStart; region < secondEnd; region++) {
        if ((label === null || index.second.labels[region] === label) && secondPasses(region)) onlySecond++;
      }
    }
    tally.only.first += onlyFirst;
    tally.only.second += onlySecond;
    if (onlyFirst || onlySecond) tally.only.images++;
    tally.regions += stay;
    if (stay) tally.images++;
    tally.chosen.allRegions += chosen;
    if (chosen) tally.chosen.allImages++;
    if (label !== null && stayChosen) {
      tally.chosen.regions += stayChosen;
      tally.chosen.images++;
    }
    if (flagged ? !flagged.has(texts[place].split("\n", 1)[0]) : filter.status && index.statuses[place] !== filter.status[0]) continue;
    if (only ? !({ first: onlyFirst, second: onlySecond, either: onlyFirst + onlySecond }[only]) : restricted && !stayChosen) continue;
    if (!matches && !texts[place].toLowerCase().includes(query)) continue;
    const image = firstImage + place;
    tally.found.push(image);
    tally.shown += stayChosen;
    if (filter.sort) tally.ranks.push({ highest: -high, lowest: low, random: mixed(filter.seed, image, 0) }[filter.sort]);
    if (!filter.sampled) continue;
    for (let region = start; region < end; region++) {
      if (!kept[region] || (label !== null && index.labels[region] !== label)) continue;
      tally.sample.push([mixed(filter.seed, image, region - start), image, region - start]);
    }
    if (tally.sample.length > 4 * filter.sampled + 10000) tally.sample = lowest(tally.sample, filter.sampled);
  }
}

// A function that says whether a region has at least the lowest numbers of all limits.
function passesOf(columns, limits) {
  const limited = limits.map(([name, lowestNumber]) => [columns[name], lowestNumber]);
  return (region) => limited.every(([column, lowestNumber]) => column[region] >= lowestNumber);
}

function countInHistograms(histograms, index, region) {
  for (const name of NAMES) {
    const counts = histograms[name], value = index[name][region];
    const bin = name === "patches"
      ? facts.steps.findLastIndex((step) => value >= 255 * step)
      : Math.min(counts.length - 1, Math.floor(value * counts.length / 1000));
    counts[bin]++;
  }
}
