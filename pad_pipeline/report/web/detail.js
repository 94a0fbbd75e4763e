"use strict";
// One image, enlarged, with its regions, tags and facts.

let opened = -1; // place of the enlarged card, or -1

const openedFrame = () => [...$("detail").querySelectorAll(".frame")].find((frame) => frame.zoom);

function openDetail(place) {
  const card = cards[place];
  if (!card) return;
  opened = place;
  const head = element("div", { class: "head" }, element("h2", {}, card.id), flagButton(card));
  for (const [text, name, step] of [["←", "Previous image", -1], ["→", "Next image", 1]]) {
    head.append(button(text, name, () => openDetail(place + step)));
    head.lastChild.disabled = !cards[place + step];
  }
  const close = button("×", "Close", () => $("detail").close());
  head.append(close);
  const side = element("div", { class: "side" }, head, ...captionOf(card));
  const stage = element("div", { class: "stage" }, ...framesOf(card));
  const frames = [...stage.querySelectorAll(".frame")].filter((frame) => frame.svg);
  if (frames.length) stage.append(zoomable(...frames));
  const titles = facts.second ? facts.names.map((name) => `Regions of ${name}`) : ["Regions"];
  const runs = [card, card.second].filter((run) => run?.regions);
  runs.forEach((run, place) => {
    if (run.regions.length) side.append(element("h3", {}, titles[place]), drawRegions(run, frames[place]));
  });
  if (card.tags?.length) side.append(element("h3", {}, "Tags"), drawTags(card));
  if (facts.words[card.key]) {
    const drawing = element("img", { src: facts.words[card.key], alt: "Each patch in the color of its nearest label", class: "words" });
    side.append(element("h3", {}, "As words"), element("a", { href: facts.words[card.key], target: "_blank", rel: "noopener" }, drawing));
  }
  const about = { ...card, size: card.width ? `${card.width} × ${card.height}` : "" };
  const named = ["status", "reason", "size", "source", "key", "shard"].filter((what) => about[what]);
  side.append(element("dl", { class: "about" },
    ...named.flatMap((what) => [element("dt", {}, what), element("dd", {}, about[what])])));
  $("detail").firstElementChild.replaceChildren(stage, side);
  if (!$("detail").open) $("detail").showModal();
  close.focus();
  showFlags();
  redrawAll(stage);
}

// The list of regions. A region under a threshold is struck through; its name leads to the images with this label.
function drawRegions(card, frame) {
  const list = element("ol", { class: "regions" });
  card.regions.forEach((region, number) => {
    const others = region.alternates.map(([label, score]) => `${label} ${short(score)}`).join(", ");
    const patches = region.covered ? ` · ${Number((region.covered / 255).toPrecision(3))} patches` : " · outside the view";
    const text = describe(region) + patches + (others ? ` · or ${others}` : "");
    const row = labelLink(region.label);
    row.prepend(swatch(region.label));
    row.append(element("small", {}, (region.only ? "only here · " : "") + text));
    for (const event of ["pointerenter", "focus"]) row.addEventListener(event, () => frame.point(number));
    for (const event of ["pointerleave", "blur"]) row.addEventListener(event, () => frame.point(null));
    list.append(element("li", stays(region) ? {} : { class: "hides" }, row));
  });
  return list;
}

function listenToDetail() {
  $("detail").addEventListener("click", (event) => {
    if (event.target.closest("a")) $("detail").close();
  });
  $("detail").addEventListener("close", () => {
    const place = opened;
    opened = -1;
    $("cards").children[place]?.querySelector("button").focus();
  });
}
