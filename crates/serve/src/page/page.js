"use strict";

const byId = (id) => document.getElementById(id);
const history = [];
let asked = 0;
let searched = 0;

async function call(path, options = {}) {
  const headers = { ...options.headers };
  const key = byId("key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers });
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new Error(body?.error?.message ?? `${response.status} ${response.statusText}`);
  }
  return response;
}

// Images are fetched, not linked: a link would not carry the key.
async function showImage(path, element) {
  try {
    const address = URL.createObjectURL(await (await call(path)).blob());
    const image = document.createElement("img");
    image.alt = "";
    image.onload = () => URL.revokeObjectURL(address);
    image.src = address;
    element.replaceWith(image);
  } catch {
    // The title is enough if the image cannot be shown.
  }
}

function entry(item, detail, action, label) {
  const row = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "item";
  button.setAttribute("aria-label", `${label}: ${item.title || item.item_id}, ${detail}`);
  const blank = document.createElement("span");
  blank.className = "blank";
  const text = document.createElement("span");
  text.className = "title";
  text.textContent = item.title || item.item_id;
  const small = document.createElement("small");
  small.textContent = detail;
  text.append(small);
  button.append(blank, text);
  button.onclick = action;
  row.append(button);
  if (item.image) showImage(item.image, blank);
  return row;
}

async function find() {
  const own = ++searched;
  try {
    const query = new URLSearchParams({ q: byId("query").value });
    const found = await (await call(`/v1/items?${query}`)).json();
    if (own !== searched) return;
    const rows = found.items.map((item) => entry(item, `${item.item_id}, ${item.score} events`, () => add(item), "Add"));
    byId("found").replaceChildren(...rows);
  } catch (error) {
    if (own === searched) byId("run").textContent = error.message;
  }
}

function add(item) {
  history.push(item);
  show();
}

function show() {
  const remove = (at) => () => {
    history.splice(at, 1);
    show();
    (byId("history").querySelectorAll("button")[Math.min(at, history.length - 1)] ?? byId("query")).focus();
  };
  byId("history").replaceChildren(...history.map((item, at) => entry(item, item.item_id, remove(at), "Remove")));
  byId("empty").hidden = history.length > 0;
  byId("clear").hidden = history.length === 0;
  recommend();
}

async function recommend() {
  const own = ++asked;
  if (history.length === 0) {
    byId("list").replaceChildren();
    byId("note").textContent = "";
    return;
  }
  try {
    const body = JSON.stringify({ history: history.map((item) => item.item_id) });
    const headers = { "Content-Type": "application/json" };
    const answer = await (await call("/v1/recommend", { method: "POST", body, headers })).json();
    if (own !== asked) return;
    const rows = answer.items.map((item) => entry(item, `${item.item_id}, score ${item.score.toFixed(3)}`, () => add(item), "Add"));
    const focused = byId("list").contains(document.activeElement);
    byId("list").replaceChildren(...rows);
    if (focused) byId("list").querySelector("button")?.focus();
    const unknown = answer.unknown.length ? ` Not in the run any more: ${answer.unknown.join(", ")}.` : "";
    const found = answer.fallback ? "No known item in the history; these are the most popular items." : `${rows.length} items.`;
    byId("note").textContent = found + unknown;
  } catch (error) {
    if (own === asked) byId("note").textContent = error.message;
  }
}

async function status() {
  try {
    const ready = await (await call("/readyz")).json();
    byId("run").textContent = `${ready.model}, ${ready.items} items, search: ${ready.search}`;
  } catch (error) {
    byId("run").textContent = error.message;
  }
}

byId("query").oninput = find;
byId("key").onchange = () => { status(); find(); };
byId("clear").onclick = () => { history.length = 0; show(); byId("query").focus(); };
status();
find();
show();
