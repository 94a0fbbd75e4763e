"use strict";
// Gallery, filter, search, paging. The state is in the address behind #, so that links and the browser's back button
// work. Data files are loaded when they are needed, and only the latest are kept.

const $ = (id) => document.getElementById(id);
const KEPT = 96; // data files in memory
const SHOWS = ["tags", "boxes", "masks", "patches"];
const LETTERS = { t: "tags", b: "boxes", m: "masks", p: "patches" };

const loaded = new Map(); // name -> promise of its value; the last entry is the latest one that was used
const arrived = new Map();
window.padData = (name, value) => arrived.set(name, value);

function load(name, keep = true) {
  const known = loaded.get(name);
  const value = known || new Promise((resolve, reject) => {
    const script = element("script", { src: `data/${name}.js` });
    const finish = () => {
      script.remove();
      if (!arrived.has(name)) return reject(new Error(`data/${name}.js can't be read: was the whole folder copied?`));
      resolve(arrived.get(name));
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

const numbered = (kind, number) => `${kind}-${String(number).padStart(6, "0")}`;
const counted = (number) => number.toLocaleString("en");

let facts, labelNumbers;
let state, shownFor = "", results = null, cards = [], opened = -1, turn = 0;

function readState() {
  const found = new URLSearchParams(location.hash.slice(1));
  const page = Math.max(1, parseInt(found.get("page"), 10) || 1);
  const score = Math.min(100, Math.max(0, parseInt(found.get("score"), 10) || 0));
  const show = new Set((found.get("show") ?? "tags,boxes,masks").split(",").filter((name) => SHOWS.includes(name)));
  const tab = ["statistics", "run"].includes(found.get("tab")) ? found.get("tab") : "gallery";
  const text = (name) => found.get(name) || "";
  return { tab, q: text("q"), label: text("label"), status: text("status"), score, page, show };
}

function addressOf(wanted) {
  const made = new URLSearchParams();
  if (wanted.tab !== "gallery") made.set("tab", wanted.tab);
  for (const name of ["q", "label", "status"]) if (wanted[name]) made.set(name, wanted[name]);
  if (wanted.score) made.set("score", wanted.score);
  if (wanted.page > 1) made.set("page", wanted.page);
  const show = SHOWS.filter((name) => wanted.show.has(name)).join(",");
  if (show !== "tags,boxes,masks") made.set("show", show);
  return `#${made}`;
}

// Change the state. `step`: whether the browser's back button returns to the earlier state.
function go(changes, step = true) {
  const address = addressOf({ ...state, ...changes });
  if (address === (location.hash || "#")) return;
  if (step) location.hash = address;
  else location.replace(address);
}

// Return the numbers of the images that pass the filter, or null for all. `soon` is called with the numbers found so far.
async function search(wanted, mine, soon) {
  const query = wanted.q.trim().toLowerCase();
  if (!query && !wanted.label && !wanted.status && !wanted.score) return null;
  const label = wanted.label ? labelNumbers.get(wanted.label) : null;
  if (label === undefined) return [];
  const named = new Set(query ? facts.labels.flatMap(([name], n) => (name.toLowerCase().includes(query) ? [n] : [])) : []);
  const found = [];
  const blocks = Math.ceil(facts.images / facts.block);
  for (let block = 0; block < blocks; block++) {
    const [index, texts] = await Promise.all([
      load(numbered("index", block)),
      query ? load(numbered("text", block), false) : null,
    ]);
    if (turn !== mine) return [];
    for (let place = 0; place < index.statuses.length; place++) {
      if (wanted.status && index.statuses[place] !== wanted.status[0]) continue;
      const scores = index.labels[place]; // label, percent, label, percent, ...
      let scored = !wanted.score && label === null, matches = !query;
      for (let n = 0; n < scores.length; n += 2) {
        if ((label === null || scores[n] === label) && scores[n + 1] >= wanted.score) scored = true;
        if (named.has(scores[n])) matches = true;
      }
      if (scored && (matches || texts[place].toLowerCase().includes(query))) found.push(block * facts.block + place);
    }
    await soon(found, block + 1 < blocks);
  }
  return found;
}

async function apply() {
  state = readState();
  for (const link of document.querySelectorAll("[data-tab]")) {
    $(link.dataset.tab).hidden = link.dataset.tab !== state.tab;
    if (link.dataset.tab === state.tab) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (state.tab !== "gallery") return;
  document.querySelector('[data-tab="gallery"]').href = addressOf(state);
  for (const name of ["q", "label"]) if ($(name) !== document.activeElement) $(name).value = state[name];
  $("status").value = state.status;
  $("score").value = state.score;
  $("least").value = short(state.score / 100);
  for (const box of document.querySelectorAll("[data-show]")) box.checked = state.show.has(box.dataset.show);
  const mine = ++turn;
  const filter = JSON.stringify([state.q, state.label, state.status, state.score]);
  try {
    if (filter !== shownFor) {
      results = null;
      let first = true;
      const found = await search(state, mine, async (sofar, more) => {
        if (!more) return;
        $("found").textContent = `${counted(sofar.length)} found, searching…`;
        if (first && sofar.length >= state.page * facts.page_size) {
          first = false;
          await showPage(mine, sofar);
        }
      });
      if (turn !== mine) return;
      results = found;
      shownFor = filter;
    }
    await showPage(mine, results);
    if (turn === mine) document.body.dataset.ready = location.hash; // for programs that wait until the page is drawn
  } catch (error) {
    $("found").textContent = error.message;
  }
}

async function showPage(mine, found) {
  const total = found ? found.length : facts.images;
  const pages = Math.max(1, Math.ceil(total / facts.page_size));
  const page = Math.min(state.page, pages);
  const first = (page - 1) * facts.page_size;
  const numbers = found
    ? found.slice(first, first + facts.page_size)
    : Array.from({ length: Math.min(facts.page_size, total - first) }, (_, n) => first + n);
  const shown = await Promise.all(numbers.map(async (number) => {
    const file = Math.floor(number / facts.page_size), place = number % facts.page_size;
    const card = (await load(numbered("page", file)))[place];
    const image = `images/${String(file).padStart(6, "0")}/${String(place).padStart(3, "0")}.jpg`;
    return { ...card, image };
  }));
  if (turn !== mine) return;
  cards = shown;
  $("cards").replaceChildren(...cards.map(drawCard));
  fitAll($("cards"));
  const range = total ? `${counted(first + 1)}–${counted(first + numbers.length)} of ` : "";
  const what = found ? `${total === 1 ? "match" : "matches"} in ${counted(facts.images)} images` : "images";
  $("found").textContent = `${range}${counted(total)} ${what}`;
  $("clear").hidden = !found;
  $("pages").textContent = counted(pages);
  $("page").value = page;
  $("page").max = pages;
  $("previous").disabled = page <= 1;
  $("next").disabled = page >= pages;
  if (opened >= 0) open(Math.min(opened, cards.length - 1));
}

function drawCard(card, place) {
  const enlarge = button("", `Enlarge ${card.id}`, () => open(place));
  enlarge.className = "enlarge";
  enlarge.append(frameOf(card));
  const head = element("p", { class: "head" }, element("span", { class: "id" }, card.id));
  if (card.status !== "ok") head.append(element("span", { class: `badge ${card.status}` }, card.status));
  const item = element("li", { class: `card ${card.status}` }, enlarge, head, ...captionOf(card));
  if (state.show.has("tags") && card.tags?.length) item.append(drawTags(card));
  return item;
}

function button(text, name, action) {
  const made = element("button", { type: "button", "aria-label": name }, text);
  made.addEventListener("click", action);
  return made;
}

function frameOf(card) {
  if (card.status !== "failed") return drawFrame(card, card.image, facts.patches, state.show);
  const stage = element("strong", {}, `failed in ${card.stage}`);
  return element("span", { class: "frame failure" }, stage, element("span", {}, card.reason));
}

const captionOf = (card) => (card.caption ? [element("p", { class: "caption", dir: "auto" }, card.caption)] : []);

function drawTags(card) {
  const tags = card.tags.map(([label, score]) => element("li", { title: `score ${short(score)}` },
    element("bdi", {}, label), element("span", { class: "score" }, short(score))));
  return element("ul", { class: "tags", "aria-label": "Tags" }, ...tags);
}

function fitAll(where) {
  for (const frame of where.querySelectorAll(".frame")) frame.fit?.();
}

function open(place) {
  const card = cards[place];
  if (!card) return;
  opened = place;
  const head = element("div", { class: "head" }, element("h2", {}, card.id));
  for (const [text, name, step] of [["←", "Previous image", -1], ["→", "Next image", 1]]) {
    head.append(button(text, name, () => open(place + step)));
    head.lastChild.disabled = !cards[place + step];
  }
  const close = button("×", "Close", () => $("detail").close());
  head.append(close);
  const frame = frameOf(card), side = element("div", { class: "side" }, head, ...captionOf(card));
  if (card.regions?.length) side.append(element("h3", {}, "Regions"), drawRegions(card, frame));
  if (card.tags?.length) side.append(element("h3", {}, "Tags"), drawTags(card));
  const about = { ...card, size: card.width ? `${card.width} × ${card.height}` : "" };
  const named = ["status", "size", "source", "key", "shard"].filter((what) => about[what]);
  side.append(element("dl", { class: "about" },
    ...named.flatMap((what) => [element("dt", {}, what), element("dd", {}, about[what])])));
  $("detail").firstElementChild.replaceChildren(element("div", { class: "stage" }, frame), side);
  if (!$("detail").open) $("detail").showModal();
  close.focus();
  frame.fit?.();
}

function drawRegions(card, frame) {
  const list = element("ol", { class: "regions" });
  card.regions.forEach((region, number) => {
    const color = { fill: colorOf(number), stroke: colorOf(number), "stroke-dasharray": dashOf(number) };
    const swatch = element("svg:svg", { viewBox: "0 0 16 16", class: "swatch", "aria-hidden": "true" },
      element("svg:rect", { x: 2, y: 2, width: 12, height: 12, ...color }));
    const others = region.alternates.map(([label, score]) => `${label} ${short(score)}`).join(", ");
    const text = describe(region) + (others ? ` · or ${others}` : "");
    const row = element("button", { type: "button" }, swatch, element("bdi", {}, region.label), element("small", {}, text));
    for (const event of ["pointerenter", "focus"]) row.addEventListener(event, () => frame.point(number));
    for (const event of ["pointerleave", "blur"]) row.addEventListener(event, () => frame.point(null));
    list.append(element("li", {}, row));
  });
  return list;
}

function turnPage(step) {
  if (step < 0 ? $("previous").disabled : $("next").disabled) return;
  go({ page: state.page + step });
  scrollTo(0, 0);
}

function listen() {
  let pause;
  for (const name of ["q", "label"]) {
    $(name).addEventListener("input", () => {
      clearTimeout(pause);
      pause = setTimeout(() => go({ [name]: $(name).value, page: 1 }, false), 150);
    });
  }
  $("filter").addEventListener("submit", (event) => event.preventDefault());
  $("status").addEventListener("change", () => go({ status: $("status").value, page: 1 }));
  $("score").addEventListener("input", () => { $("least").value = short($("score").value / 100); });
  $("score").addEventListener("change", () => go({ score: Number($("score").value), page: 1 }));
  $("clear").addEventListener("click", () => {
    for (const name of ["q", "label"]) $(name).value = "";
    go({ q: "", label: "", status: "", score: 0, page: 1 });
  });
  $("previous").addEventListener("click", () => turnPage(-1));
  $("next").addEventListener("click", () => turnPage(1));
  $("page").addEventListener("change", () => go({ page: Math.max(1, Number($("page").value) || 1) }));
  for (const box of document.querySelectorAll("[data-show]")) box.addEventListener("change", () => toggle(box.dataset.show));
  $("detail").addEventListener("close", () => {
    const place = opened;
    opened = -1;
    $("cards").children[place]?.querySelector("button").focus();
  });
  window.addEventListener("hashchange", apply);
  new ResizeObserver(() => fitAll(document)).observe($("cards"));
  window.addEventListener("resize", () => fitAll($("detail")));
  document.addEventListener("keydown", onKey);
}

function toggle(name) {
  const show = new Set(state.show);
  if (!show.delete(name)) show.add(name);
  go({ show }, false);
}

function onKey(event) {
  const typing = event.target.matches?.("input:not([type=checkbox]), select, textarea");
  if (state.tab !== "gallery" || event.ctrlKey || event.metaKey || event.altKey || typing) return;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && opened >= 0) open(opened + step);
  else if (step) turnPage(step);
  else if (LETTERS[event.key]) toggle(LETTERS[event.key]);
  else if (event.key === "/" && opened < 0) $("q").focus();
  else return;
  event.preventDefault();
}

async function start() {
  try {
    facts = await load("facts");
  } catch (error) {
    $("gallery").hidden = false;
    $("found").textContent = error.message;
    return;
  }
  labelNumbers = new Map(facts.labels.map(([label], number) => [label, number]));
  const common = [...facts.labels].sort((a, b) => b[1] - a[1]).slice(0, 5000);
  $("labels").append(...common.map(([label]) => element("option", { value: label })));
  listen();
  await apply();
}

start();
