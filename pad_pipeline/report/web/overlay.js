"use strict";
// Draws an image and its regions as one SVG in pixels of the upright original, so that boxes, masks and the patch grid
// fit at any size. Text from data never becomes markup.

const REACH = 1024; // units of a mask's path along the image's long edge

const decoded = new WeakMap(); // region -> its coverage, because frames are drawn again while a slider moves

// The coverage of a region, as a function of row and column: 0..255.
function coverageOf(region) {
  if (!region.patches.length) return () => 0;
  const [top, left, rows, columns, packed] = region.patches;
  if (!decoded.has(region)) decoded.set(region, unpacked(packed, Uint8Array));
  const bytes = decoded.get(region);
  return (row, column) =>
    row < top || column < left || row >= top + rows || column >= left + columns
      ? 0
      : bytes[(row - top) * columns + column - left];
}

// The numbers of a region, as text.
function describe(region) {
  const area = region.area < 0.1 ? (100 * region.area).toPrecision(2) : Math.round(100 * region.area);
  const scores = `score ${short(region.score)} · label ${short(region.label_score)} · mask ${short(region.iou)}`;
  return `${scores} · area ${area}%${region.crowd ? " · crowd" : ""}`;
}

// Visible regions in the order of drawing: large regions first, so that small regions are above them.
function drawingOrder(regions, visible) {
  const size = (region) => (region.box[2] - region.box[0]) * (region.box[3] - region.box[1]);
  const numbered = regions.map((region, number) => [region, number]).filter(([region]) => visible(region));
  return numbered.sort((a, b) => size(b[0]) - size(a[0]));
}

// A group with the elements that `draw` returns for each visible region.
function layer(name, card, visible, draw) {
  const parts = drawingOrder(card.regions, visible).flatMap(([region, number]) => draw(region, number));
  return element("svg:g", { class: name }, ...parts);
}

function drawMask(region, number, card) {
  return element("svg:path", {
    d: region.path, transform: `scale(${Math.max(card.width, card.height) / REACH})`, fill: colorOf(region.label),
    stroke: colorOf(region.label), "fill-rule": "evenodd", "data-region": number,
  });
}

function drawBox({ label, box: [x, y, right, bottom] }, number) {
  const place = { x, y, width: Math.max(right - x, 0), height: Math.max(bottom - y, 0) };
  const dashes = { stroke: colorOf(label), "stroke-dasharray": dashOf(label), "data-region": number };
  return [element("svg:rect", { ...place, class: "casing" }), element("svg:rect", { ...place, ...dashes })];
}

function drawName({ label, box: [x, y] }, number) {
  return element("svg:text", { x, y, fill: nameColorOf(label), "data-region": number }, label);
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
    x: x + column * width, y: y + row * height, width, height, fill: colorOf(card.regions[number].label),
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
function drawPatches(card, patches, visible) {
  const group = element("svg:g", { class: "patches" });
  const [x, y, width, height] = card.grid;
  const [left, top, across, down] = viewOf(card, patches);
  const [frameX, frameY, frameWidth, frameHeight] = unionOf(card, patches);
  const frame = `M${frameX} ${frameY}h${frameWidth}v${frameHeight}h${-frameWidth}z`;
  group.append(element("svg:path", { class: "outside", d: `${frame}M${left} ${top}h${across}v${down}h${-across}z` }));
  const covers = card.regions.map(coverageOf);
  const smallestFirst = drawingOrder(card.regions, visible).map(([, number]) => number).reverse();
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

// The frame of one card: image, overlays, and a line about the region under the pointer. `show` is a set of names, and
// `visible` says whether a region is drawn. After a change of what is visible, call `redraw`.
function drawFrame(card, source, patches, show, visible = isDrawn) {
  const box = show.has("patches") ? unionOf(card, patches) : [0, 0, card.width, card.height];
  const svg = element("svg:svg", { viewBox: box.join(" "), role: "img" });
  if (show.has("patches")) { // the border that the fit `pad` adds is gray for the vision encoder, too
    const [x, y, width, height] = viewOf(card, patches);
    svg.append(element("svg:rect", { class: "border", x, y, width, height }));
  }
  const { width, height } = card;
  const overlay = element("svg:g");
  svg.append(element("svg:image", { href: source, width, height, preserveAspectRatio: "none" }), overlay);
  const readout = element("span", { class: "readout" });
  const frame = element("span", { class: "frame" }, svg, readout);
  let pointed = null;
  Object.assign(frame, { svg, box, view: box });
  frame.redraw = () => {
    const names = card.regions.filter(visible).map((region) => region.label).join(", ");
    svg.setAttribute("aria-label", names || (card.regions.length ? "all regions hidden" : "nothing found"));
    overlay.replaceChildren();
    if (show.has("patches")) overlay.append(drawPatches(card, patches, visible));
    if (show.has("masks")) overlay.append(layer("masks", card, visible, (region, number) => drawMask(region, number, card)));
    if (show.has("boxes")) overlay.append(layer("boxes", card, visible, drawBox));
    if (["boxes", "masks", "patches"].some((name) => show.has(name))) overlay.append(layer("names", card, visible, drawName));
    pointed = null;
    readout.textContent = "";
    svg.classList.remove("pointed");
    frame.fit();
  };
  frame.point = (number, coverage) => {
    const region = number === null || !visible(card.regions[number]) ? null : card.regions[number];
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
  frame.fit = () => fitNames(svg, card, frame.view);
  frame.redraw();
  return frame;
}
