"use strict";
// The gallery: one page of cards, and the line that says how many there are.

let cards = [];

// Show a page of the images in `found`, or of all images if that is null. `current()`: whether it is still wanted.
async function showPage(found, current) {
  const total = found ? found.length : facts.images;
  const pages = Math.max(1, Math.ceil(total / facts.page_size));
  const page = Math.min(state.page, pages);
  const first = (page - 1) * facts.page_size;
  const numbers = found
    ? found.slice(first, first + facts.page_size)
    : Array.from({ length: Math.min(facts.page_size, total - first) }, (_, n) => first + n);
  const shown = await Promise.all(numbers.map(loadCard));
  if (!current()) return;
  cards = shown;
  $("cards").replaceChildren(...cards.map(drawCard));
  redrawAll($("cards"));
  showFlags();
  const range = total ? `${counted(first + 1)}–${counted(first + numbers.length)} of ` : "";
  const what = found ? `${total === 1 ? "match" : "matches"} in ${counted(facts.images)} images` : "images";
  $("found").textContent = `${range}${counted(total)} ${what}`;
  $("pages").textContent = counted(pages);
  $("page").value = page;
  $("page").max = pages;
  $("previous").disabled = page <= 1;
  $("next").disabled = page >= pages;
  if (opened >= 0) openDetail(Math.min(opened, cards.length - 1));
}

function drawCard(card, place) {
  const enlarge = button("", `Enlarge ${card.id}`, () => openDetail(place));
  enlarge.className = "enlarge";
  enlarge.append(...framesOf(card));
  const head = element("div", { class: "head" }, element("span", { class: "id", title: card.id }, card.id));
  if (card.status !== "ok") head.append(element("span", { class: `badge ${card.status}` }, card.status));
  head.append(flagButton(card));
  const item = element("li", { class: `card ${card.status}` }, enlarge, head, ...captionOf(card));
  if (state.show.has("tags") && card.tags?.length) item.append(drawTags(card));
  return item;
}

// The frame of a card, or the frames of both runs.
function framesOf(card) {
  const first = card.status === "failed" ? noFrame(`failed in ${card.stage}`, card.reason)
    : drawFrame(card, card.image, facts.patches, state.show);
  if (!facts.second) return [first];
  const second = card.second.missing ? noFrame("not compared", card.second.missing)
    : drawFrame({ ...card, ...card.second }, card.image, facts.second.patches, state.show);
  return [first, second].map((frame, place) =>
    element("span", { class: "run" }, frame, element("span", { class: "which" }, facts.names[place])));
}

function noFrame(what, reason) {
  return element("span", { class: "frame failure" }, element("strong", {}, what), element("span", {}, reason));
}

const captionOf = (card) => (card.caption ? [element("p", { class: "caption", dir: "auto" }, card.caption)] : []);

// A tag leads to the images with regions of this label, or if there are none, to the images whose texts contain it.
function drawTags(card) {
  const tags = card.tags.map(([label, score]) => {
    const link = labelLink(label);
    if (!labelNumbers.has(label)) link.href = addressOf({ tab: "gallery", q: label, label: "", page: 1 });
    return element("li", { title: `score ${short(score)}` }, link, element("span", { class: "score" }, short(score)));
  });
  return element("ul", { class: "tags", "aria-label": "Tags" }, ...tags);
}

function redrawAll(where) {
  for (const frame of where.querySelectorAll(".frame")) frame.redraw?.();
}

function fitAll(where) {
  for (const frame of where.querySelectorAll(".frame")) frame.fit?.();
}

function turnPage(step) {
  if (step < 0 ? $("previous").disabled : $("next").disabled) return;
  go({ page: state.page + step });
  scrollTo(0, 0);
}
