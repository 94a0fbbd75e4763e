"use strict";
// Draws an image and its regions as one SVG in pixels of the upright original, so that boxes, masks and the patch grid
// fit at any size. Text from data never becomes markup.

// Okabe and Ito's colors, which color-blind people can distinguish. After seven regions, the dashes change.
const COLORS = ["#f0a020", "#56b4e9", "#f0e442", "#00b884", "#ff7a33", "#e08fc0", "#5b8ff0"];
const DASHES = ["none", "6 3", "2 2"];
const REACH = 1024; // units of a mask's path along the image's long edge

function element(name, attributes = {}, ...children) {
  const made = name.includes(":")
    ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const colorOf = (number) => COLORS[number % COLORS.length];
const dashOf = (number) => DASHES[Math.floor(number / COLORS.length) % DASHES.length];
const short = (value) => value.toFixed(2);

// The coverage of a region, as a function of row and column: 0..255.
function coverageOf(region) {
  if (!region.patches.length) return () => 0;
  const [top, left, rows, columns, packed] = region.patches;
  const bytes = atob(packed);
  return (row, column) =>
    row < top || column < left || row >= top + rows || column >= left + columns
      ? 0
      : bytes.charCodeAt((row - top) * columns + column - left);
}

// The numbers of a region, as text.
function describe(region) {
  const area = region.area < 0.1 ? (100 * region.area).toPrecision(2) : Math.round(100 * region.area);
  return `score ${short(region.score)} · mask ${short(region.iou)} · area ${area}%${region.crowd ? " · crowd" : ""}`;
}

// Regions in the order of drawing: large regions first, so that small regions are above them.
function drawingOrder(regions) {
  const size = (region) => (region.box[2] - region.box[0]) * (region.box[3] - region.box[1]);
  return regions.map((region, number) => [region, number]).sort((a, b) => size(b[0]) - size(a[0]));
}

// A group with the elements that `draw` returns for each region.
function layer(name, card, draw) {
  const parts = drawingOrder(card.regions).flatMap(([region, number]) => draw(region, number));
  return element("svg:g", { class: name }, ...parts);
}

function drawMask(region, number, card) {
  return element("svg:path", {
    d: region.path, transform: `scale(${Math.max(card.width, card.height) / REACH})`, fill: colorOf(number),
    stroke: colorOf(number), "fill-rule": "evenodd", "data-region": number,
  });
}

function drawBox({ box: [x, y, right, bottom] }, number) {
  const place = { x, y, width: Math.max(right - x, 0), height: Math.max(bottom - y, 0) };
  const dashes = { stroke: colorOf(number), "stroke-dasharray": dashOf(number), "data-region": number };
  return [element("svg:rect", { ...place, class: "casing" }), element("svg:rect", { ...place, ...dashes })];
}

function drawName({ label, box: [x, y] }, number) {
  return element("svg:text", { x, y, fill: colorOf(number), "data-region": number }, label);
}

// The position of the view on the image: left, top, width, height.
function viewOf(card, patches) {
  const [left, top, width, height] = card.grid;
  return [left, top, width * patches, height * patches];
}

// The frame around image and view: left, top, width, height. The fit `pad` makes the view larger than the image.
function unionOf(card, patches) {
  const [left, top, width, height] = viewOf(card, patches);
  const x = Math.min(0, left), y = Math.min(0, top);
  return [x, y, Math.max(card.width, left + width) - x, Math.max(card.height, top + height) - y];
}

function drawCell(card, row, column, number, coverage) {
  const [x, y, width, height] = card.grid;
  return element("svg:rect", {
    x: x + column * width, y: y + row * height, width, height, fill: colorOf(number),
    "fill-opacity": (0.15 + 0.6 * coverage / 255).toFixed(3), "data-region": number, "data-coverage": coverage,
  });
}

// Every patch that a region touches. A higher coverage gives a stronger color.
function drawOwnCells(card, number) {
  const group = element("svg:g", { class: "own" });
  const [top, left, rows, columns] = card.regions[number].patches;
  const coverage = coverageOf(card.regions[number]);
  for (let row = top; row < top + rows; row++) {
    for (let column = left; column < left + columns; column++) {
      if (coverage(row, column)) group.append(drawCell(card, row, column, number, coverage(row, column)));
    }
  }
  return group;
}

// Each patch has the color of the smallest region that covers at least half of it. A higher coverage is stronger.
function drawPatches(card, patches) {
  const group = element("svg:g", { class: "patches" });
  const [x, y, width, height] = card.grid;
  const [left, top, across, down] = viewOf(card, patches);
  const [frameX, frameY, frameWidth, frameHeight] = unionOf(card, patches);
  const frame = `M${frameX} ${frameY}h${frameWidth}v${frameHeight}h${-frameWidth}z`;
  group.append(element("svg:path", { class: "outside", d: `${frame}M${left} ${top}h${across}v${down}h${-across}z` }));
  const covers = card.regions.map(coverageOf);
  const smallestFirst = drawingOrder(card.regions).map(([, number]) => number).reverse();
  const cells = element("svg:g", { class: "cells" });
  for (let row = 0; row < patches; row++) {
    for (let column = 0; column < patches; column++) {
      const number = smallestFirst.find((n) => covers[n](row, column) >= 128);
      if (number !== undefined) cells.append(drawCell(card, row, column, number, covers[number](row, column)));
    }
  }
  let lines = "";
  for (let line = 0; line <= patches; line++) {
    lines += `M${x + line * width} ${top}v${down}M${left} ${y + line * height}h${across}`;
  }
  group.append(cells, element("svg:path", { class: "lines", d: lines }));
  return group;
}

// The frame of one card: image, overlays, and a line about the region under the pointer. `show` is a set of names.
function drawFrame(card, source, patches, show) {
  const box = show.has("patches") ? unionOf(card, patches) : [0, 0, card.width, card.height];
  const names = card.regions.map((region) => region.label).join(", ") || "nothing found";
  const svg = element("svg:svg", { viewBox: box.join(" "), role: "img", "aria-label": names });
  if (show.has("patches")) { // the border that the fit `pad` adds is gray for the vision encoder, too
    const [x, y, width, height] = viewOf(card, patches);
    svg.append(element("svg:rect", { class: "border", x, y, width, height }));
  }
  const { width, height } = card;
  svg.append(element("svg:image", { href: source, width, height, preserveAspectRatio: "none" }));
  if (show.has("patches")) svg.append(drawPatches(card, patches));
  if (show.has("masks")) svg.append(layer("masks", card, (region, number) => drawMask(region, number, card)));
  if (show.has("boxes")) svg.append(layer("boxes", card, drawBox));
  if (["boxes", "masks", "patches"].some((name) => show.has(name))) svg.append(layer("names", card, drawName));
  const readout = element("span", { class: "readout" });
  const frame = element("span", { class: "frame" }, svg, readout);
  let pointed = null;
  frame.point = (number, coverage) => {
    const region = number === null ? null : card.regions[number];
    if (number !== pointed && show.has("patches")) {
      svg.querySelector(".own")?.remove();
      if (region?.patches.length) svg.querySelector(".cells").after(drawOwnCells(card, number));
    }
    pointed = number;
    for (const part of svg.querySelectorAll("[data-region]")) {
      part.classList.toggle("hot", region !== null && Number(part.dataset.region) === number);
    }
    svg.classList.toggle("pointed", region !== null);
    readout.textContent = region ? `${region.label} · ${describe(region)}` : "";
    if (region && coverage) readout.textContent += ` · patch ${short(coverage / 255)}`;
  };
  svg.addEventListener("pointerover", ({ target }) => {
    const number = target.dataset.region;
    frame.point(number === undefined ? null : Number(number), Number(target.dataset.coverage || 0));
  });
  svg.addEventListener("pointerleave", () => frame.point(null));
  frame.fit = () => fitNames(svg, card, box);
  return frame;
}

// Names have one size on the screen at any size of the image, and stay inside the image. Where two names would overlap,
// that of the smaller region is hidden until the pointer is on the region.
function fitNames(svg, card, [left, top, width, height]) {
  const shown = svg.getBoundingClientRect();
  if (!shown.width) return;
  const unit = Math.max(width / shown.width, height / shown.height); // of the image's pixels in one of the screen's
  svg.style.setProperty("--unit", `${unit}px`);
  const taken = [];
  for (const text of svg.querySelectorAll("text")) {
    const [x0, y0] = card.regions[text.dataset.region].box;
    const wide = text.getComputedTextLength() + 4 * unit, high = 15 * unit;
    const x = Math.max(left, Math.min(x0 + 3 * unit, left + width - wide));
    const y = Math.max(top, Math.min(y0 + unit, top + height - high));
    text.setAttribute("x", x);
    text.setAttribute("y", y + 12 * unit);
    const free = taken.every(([a, b, w]) => x >= a + w || a >= x + wide || Math.abs(y - b) >= high);
    if (free) taken.push([x, y, wide]);
    text.classList.toggle("waits", !free);
  }
}
