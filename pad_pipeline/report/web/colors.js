"use strict";
// Gives each label one color and one kind of dashes, the same in all images. The colors are those of colors.py, which
// says why color-blind people can distinguish them.

const COLORS = [
  "#5ac3c3", "#f0f03c", "#a53cff", "#e13c0f", "#87ffff", "#c3b400", "#1e9687", "#b487ff",
  "#a5e1b4", "#d20fc3", "#ffa5ff", "#96c387", "#78a569", "#d269c3", "#d2d24b", "#c3ffa5",
];
const DASHES = ["none", "6 3", "2 2"];

// FNV-1a over the UTF-16 units of a text: 32 bits.
function labelHash(label) {
  let hash = 0x811c9dc5;
  for (let at = 0; at < label.length; at++) hash = Math.imul(hash ^ label.charCodeAt(at), 0x01000193);
  hash >>>= 0;
  return (hash ^ (hash >>> 15)) >>> 0;
}

const colorOf = (label) => COLORS[labelHash(label) % COLORS.length];
const dashOf = (label) => DASHES[Math.floor(labelHash(label) / COLORS.length) % DASHES.length];

// The color of a label's name on an image: lighter, so that it is legible with a dark edge.
function nameColorOf(label) {
  const parts = colorOf(label).slice(1).match(/../g).map((part) => Math.round(0.6 * parseInt(part, 16) + 0.4 * 255));
  return `rgb(${parts.join(" ")})`;
}

// A small square in the color of a label.
function swatch(label) {
  const color = { fill: colorOf(label), stroke: colorOf(label), "stroke-dasharray": dashOf(label) };
  return element("svg:svg", { viewBox: "0 0 16 16", class: "swatch", "aria-hidden": "true" },
    element("svg:rect", { x: 2, y: 2, width: 12, height: 12, ...color }));
}
