"use strict";
// Makes elements and texts. Text from data never becomes markup.

const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = name.includes(":")
    ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function button(text, name, action) {
  const made = element("button", { type: "button", "aria-label": name }, text);
  made.addEventListener("click", action);
  return made;
}

const counted = (number) => number.toLocaleString("en");
const many = (number, what) => `${counted(number)} ${what}${number === 1 ? "" : "s"}`;
const short = (value) => value.toFixed(2);
const share = (part, whole) => (whole ? `${Math.round(100 * part / whole)}%` : "–");

// Offer a text to the user as a file.
function save(name, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// Calls `action` at most once for each frame that the browser draws.
function oncePerFrame(action) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => { waits = false; action(); });
  };
}

// The browser's own store. If it is switched off or full, `problem` says so, and entries live until the page is closed.
const store = {
  problem: "",
  memory: new Map(),
  attempt(action) {
    try {
      return action();
    } catch (error) {
      store.problem = error.name;
      return null;
    }
  },
  set(key, value) {
    store.memory.set(key, value);
    store.attempt(() => localStorage.setItem(key, value));
  },
  remove(key) {
    store.memory.delete(key);
    store.attempt(() => localStorage.removeItem(key));
  },
  // The entries whose key begins with a prefix: [rest of the key, value].
  entries(prefix) {
    const all = new Map([...store.memory, ...(store.attempt(() => Object.entries(localStorage)) || [])]);
    return [...all].flatMap(([key, value]) => (key.startsWith(prefix) ? [[key.slice(prefix.length), value]] : []));
  },
};
