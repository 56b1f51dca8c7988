// The browser of items, and the switches of language and theme. Texts go into the page as text, never as HTML.
"use strict";

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const WORDS = read("words");
const DATA = read("data");
const { items, runs, answers, shares } = DATA;
const root = document.documentElement;
const LANGUAGES = ["ko", "en"];
const parameters = new URLSearchParams(location.search);

const fill = (text, values) => text.replace(/\{(\d)\}/g, (_, place) => values[place]);
const inLanguage = (key, ...values) => fill(WORDS[key][LANGUAGES.indexOf(root.dataset.lang)], values);

function make(tag, name, ...children) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

// Both languages, of which the style shows one.
function say(key, ...values) {
  return LANGUAGES.map((language, place) => {
    const span = make("span", language, fill(WORDS[key][place], values));
    span.lang = language;
    return span;
  });
}

// What cannot hold elements (an option of a list, a placeholder) is told anew when the language is another.
const retold = [];
function retell(tell) {
  retold.push(tell);
  tell();
}

// Preferences are kept where the browser lets a file keep something.
function remembered(key) {
  try { return localStorage.getItem("report-" + key); } catch { return null; }
}
function remember(key, value) {
  try { localStorage.setItem("report-" + key, value); } catch { /* then it lasts as long as the page */ }
}

function setLanguage(language) {
  root.dataset.lang = root.lang = language;
  retold.forEach((tell) => tell());
}
function setTheme(theme) {
  root.dataset.theme = theme;
}

const first = parameters.get("lang") ?? remembered("lang");
if (LANGUAGES.includes(first)) root.dataset.lang = root.lang = first;
const theme = parameters.get("theme") ?? remembered("theme");
if (theme === "light" || theme === "dark") setTheme(theme);
document.getElementById("language").addEventListener("click", () => {
  setLanguage(root.dataset.lang === "ko" ? "en" : "ko");
  remember("lang", root.dataset.lang);
});
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(dark ? "light" : "dark");
  remember("theme", root.dataset.theme);
});

// What filters and sorting ask of each item, found once.
const every = runs.map((_, run) => run);
const alone = every.filter((run) => !DATA.votes[run]);
const own = alone.length ? alone : every;
const wrong = (run, item) => DATA.labelled && answers[run][item] !== items[item].label;
const sure = (run, item) => (shares[run] ? shares[run][item][answers[run][item]] / 1000 : 0.5);
const turnsOf = (item) => DATA.dialogues[items[item].dialogue] ?? [];

function median(values) {
  const sorted = [...values].sort((one, other) => one - other);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const facts = items.map((item, place) => {
  const given = own.map((run) => answers[run][place]);
  const most = Math.max(...DATA.letters.map((_, option) => given.filter((one) => one === option).length));
  const margins = own.filter((run) => DATA.margins[run]).map((run) => DATA.margins[run][place]);
  const told = [item.id, DATA.categories[item.category], ...turnsOf(place).map((turn) => turn[1]), ...item.options];
  return {
    text: told.join("\n").normalize("NFC").toLowerCase(),
    divided: 1 - most / given.length,
    flipping: own.filter((run) => DATA.flips[run] && DATA.flips[run][place] > 0).length,
    margin: margins.length ? median(margins) : null,
    confident: own.reduce((sum, run) => sum + (wrong(run, place) ? sure(run, place) : 0), 0) / own.length,
  };
});
const margined = facts.some((fact) => fact.margin !== null);
const flippable = DATA.byOrder.some(Boolean);

// The state: what is filtered, in which order, and which item is shown.
const START = { search: "", category: "", length: "", targets: "", missed: "", only: "", margin: "", focus: "", right: "", wrong: "", sort: DATA.labelled ? "confident" : margined ? "margin" : "file" };
const state = { ...START };
let shown = [];
let current = null;

const focusMargin = (item) => (state.focus === "" ? facts[item].margin : DATA.margins[state.focus]?.[item] ?? null);
const SORTS = {
  confident: (item) => (state.focus === "" ? -facts[item].confident : wrong(state.focus, item) ? -sure(state.focus, item) : 0),
  missed: (item) => -(DATA.missed?.[item] ?? 0),
  margin: (item) => focusMargin(item) ?? Infinity,
  split: (item) => -facts[item].divided,
  long: (item) => -items[item].turns,
  file: (item) => item,
};
const MARGINS = { "<0.5": (margin) => margin < 0.5, "<1": (margin) => margin < 1, "<2": (margin) => margin < 2, ">2": (margin) => margin >= 2, ">4": (margin) => margin >= 4 };

function fits(item) {
  const fact = facts[item];
  const by = DATA.missedBy?.[item];
  if (state.category !== "" && items[item].category !== Number(state.category)) return false;
  if (state.length !== "" && DATA.lengthOf[item] !== Number(state.length)) return false;
  if (state.targets !== "" && DATA.targetsOf[item] !== Number(state.targets)) return false;
  if (state.missed === "some" ? by === "none" : state.missed !== "" && by !== state.missed) return false;
  if (state.only === "disagree" && fact.divided === 0) return false;
  if (state.only === "flipped" && !(state.focus === "" ? fact.flipping : DATA.flips[state.focus]?.[item])) return false;
  if (state.only === "focus_wrong" && !(state.focus === "" ? own.some((run) => wrong(run, item)) : wrong(state.focus, item))) return false;
  if (state.margin !== "" && (focusMargin(item) === null || !MARGINS[state.margin](focusMargin(item)))) return false;
  if (state.right !== "" && wrong(state.right, item)) return false;
  if (state.wrong !== "" && !wrong(state.wrong, item)) return false;
  return words.every((word) => fact.text.includes(word));
}

let words = [];
function update() {
  words = state.search.normalize("NFC").toLowerCase().split(/\s+/).filter(Boolean);
  const keys = items.map((_, item) => SORTS[state.sort](item));
  shown = items.map((_, item) => item).filter(fits).sort((one, other) => keys[one] - keys[other] || one - other);
  const list = document.getElementById("list");
  list.replaceChildren(...(shown.length ? shown.map((item) => rows[item]) : [make("p", "nothing", say("nothing"))]));
  list.scrollTop = 0;
  count.replaceChildren(...say("shown", shown.length, items.length));
  if (shown.length && !shown.includes(current)) show(shown[0], false);
  else mark();
}

// The list.
const rows = items.map((item, place) => {
  const missed = DATA.missed?.[place];
  const side = missed === undefined ? [] : [make("span", missed ? "bad" : "", say("missed_count", missed, own.length))];
  const line = make("span", "line", make("span", "", `${item.id} · ${DATA.categories[item.category]}`), side);
  const target = DATA.text ? turnsOf(place)[item.targets[0]]?.[1] ?? "" : "";
  const row = make("div", "row", line, make("div", "words", target));
  row.setAttribute("role", "option");
  row.addEventListener("click", () => show(place, true));
  return row;
});

function mark() {
  rows.forEach((row, place) => row.setAttribute("aria-selected", String(place === current)));
}

function show(place, told) {
  current = place;
  mark();
  document.getElementById("item").replaceChildren(...itemView(place));
  reveal(rows[place]);
  if (told) history.replaceState(null, "", "#" + encodeURIComponent(items[place].id));
}

// Scrolls the list and never the page: scrollIntoView would do both.
function reveal(row) {
  const list = document.getElementById("list");
  const [inside, frame] = [row.getBoundingClientRect(), list.getBoundingClientRect()];
  if (inside.top < frame.top) list.scrollTop -= frame.top - inside.top;
  else if (inside.bottom > frame.bottom) list.scrollTop += inside.bottom - frame.bottom;
}

function inBrowser() {
  return document.getElementById("sec-items").getBoundingClientRect().top < innerHeight / 2;
}

function move(by) {
  if (!shown.length) return;
  const at = shown.indexOf(current);
  const next = at < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, at + by));
  if (!inBrowser()) document.getElementById("sec-items").scrollIntoView();
  show(shown[next], true);
}

// An item.
function button(key, act) {
  const node = make("button", "", say(key));
  node.type = "button";
  node.addEventListener("click", act);
  return node;
}

function itemView(place) {
  const item = items[place];
  const link = make("a", "", say("link"));
  link.href = "#" + encodeURIComponent(item.id);
  const head = make("div", "item-head", make("h3", "", item.id), make("span", "tag", DATA.categories[item.category]));
  if (DATA.missed) head.append(make("span", "small", say("missed_count", DATA.missed[place], own.length)));
  head.append(link, make("span", "turn", button("previous", () => move(-1)), button("next", () => move(1))));
  const right = make("div", "", options(place), table(place), reasoning(place));
  return [head, make("div", "inside", chat(place), right)];
}

function chat(place) {
  const item = items[place];
  if (!DATA.text) return make("p", "small", say("no_text", item.turns, item.targets));
  let before = null;
  return make("div", "chat", turnsOf(place).map(([speaker, text], turn) => {
    const target = item.targets.includes(turn);
    const bubble = make("div", target ? "bubble target" : "bubble", text, target ? make("span", "tag", say("target")) : null);
    const who = speaker === before ? null : make("span", "who", say("speaker", speaker));
    before = speaker;
    return make("div", speaker % 2 ? "turn-line" : "turn-line b", who, bubble);
  }));
}

function options(place) {
  const item = items[place];
  return make("div", "options", DATA.letters.map((letter, option) => {
    const ballots = own.filter((run) => answers[run][place] === option).length;
    const label = item.label === option;
    const side = make("span", "side", label ? make("b", "", say("label")) : null, say("ballots", ballots));
    return make("div", label ? "option label" : "option", make("span", "letter", letter), make("span", "", item.options[option] ?? "–"), side);
  }));
}

// Near 0 and 100 with a digit more.
const percent = (share) => (share / 10).toFixed(share % 1000 && (share > 994 || share < 6) ? 1 : 0) + "%";

function cell(run, place, option) {
  const chosen = answers[run][place] === option;
  const worth = DATA.labelled && items[place].label !== null ? (items[place].label === option ? " good" : chosen ? " bad" : "") : "";
  const share = shares[run]?.[place][option];
  const bar = make("span", "fill");
  bar.style.width = share === undefined ? (chosen ? "100%" : "0") : share / 10 + "%";
  const said = share === undefined ? (chosen ? DATA.letters[option] : "") : percent(share);
  return make("td", `share${chosen ? " chosen" : ""}${worth}`, make("span", "track", bar, make("span", "said", said)));
}

function table(place) {
  const head = make("tr", "", make("th", "", say("run")), DATA.letters.map((letter) => make("th", "", letter)));
  if (margined) head.append(make("th", "", say("margin_head")));
  if (flippable) head.append(make("th", "", say("flips")));
  const body = make("tbody");
  for (const run of every) {
    const line = make("tr", "", make("th", "", runs[run], DATA.votes[run] ? [" ", make("span", "tag", say("vote"))] : null));
    line.append(...DATA.letters.map((_, option) => cell(run, place, option)));
    if (margined) line.append(make("td", "", DATA.margins[run] ? DATA.margins[run][place].toFixed(2) : ""));
    if (flippable) line.append(make("td", "", DATA.byOrder[run] ? orderButton(run, place, line) : null));
    body.append(line);
  }
  return make("div", "wide", make("table", "answers", make("thead", "", head), body));
}

function orderButton(run, place, line) {
  const flips = DATA.flips[run][place];
  const node = make("button", flips ? "flipping" : "", `${flips}/${DATA.orders[run].length}`);
  node.type = "button";
  node.title = inLanguage("flips_help");
  node.setAttribute("aria-expanded", "false");
  let opened = null;
  node.addEventListener("click", () => {
    if (opened) opened.remove();
    opened = opened ? null : orderRow(run, place, line.children.length);
    if (opened) line.after(opened);
    node.setAttribute("aria-expanded", String(Boolean(opened)));
  });
  return node;
}

// Under each order, the options in the place of the letters that they stood under.
function orderRow(run, place, columns) {
  const told = DATA.orders[run].map((order, at) => {
    const letters = DATA.byOrder[run][place][at];
    const top = Number(order[letters.indexOf(Math.max(...letters))]);
    const shown = [...order].map((option) => DATA.letters[option]).join("");
    const said = [...order].map((option, letter) => `${DATA.letters[option]} ${(letters[letter] / 10).toFixed(0)}%`).join("  ");
    return make("span", top === answers[run][place] ? "" : "flip", `${shown}: ${said}`);
  });
  const inside = make("td", "", make("div", "grid", told));
  inside.colSpan = columns;
  return make("tr", "orders", inside);
}

function reasoning(place) {
  return every.filter((run) => DATA.reasoning[run][place]).map((run) =>
    make("details", "", make("summary", "", runs[run], " · ", say("reasoning")), DATA.reasoning[run][place].map((text) => make("div", "reasoning", text))));
}

// The filters.
const form = document.getElementById("filters");
const count = make("output", "count");
const search = make("input");
search.type = "search";
search.id = "search";
retell(() => { search.placeholder = inLanguage(DATA.text ? "search" : "search_ids"); search.setAttribute("aria-label", search.placeholder); });
const controls = { search };
let waiting = 0;
search.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { state.search = search.value; update(); }, 60);
});
form.addEventListener("submit", (event) => event.preventDefault());

// choices: [value, text] or [value, key of words, values].
function choose(name, key, choices) {
  const select = make("select");
  select.name = name;
  for (const [value, text, ...values] of choices) {
    const option = make("option");
    option.value = value;
    if (Object.hasOwn(WORDS, text) && values[0] !== null) retell(() => { option.textContent = inLanguage(text, ...values); });
    else option.textContent = text;
    select.append(option);
  }
  select.value = state[name];
  select.addEventListener("change", () => { state[name] = select.value; update(); });
  controls[name] = select;
  return make("label", "", make("span", "", say(key)), select);
}

const any = ["", "any"];
const runChoices = every.map((run) => [String(run), runs[run], null]);
form.append(search, choose("category", "category", [any, ...DATA.categories.map((category, place) => [String(place), category, null])]));
// Of lengths and numbers of targets those that there are, where there are several.
for (const [name, names, of] of [["length", DATA.lengths, DATA.lengthOf], ["targets", DATA.targets, DATA.targetsOf]]) {
  const there = names.map((text, place) => [String(place), text, null]).filter(([place]) => of.includes(Number(place)));
  if (there.length > 1) form.append(choose(name, name, [any, ...there]));
}
if (DATA.missed) form.append(choose("missed", "missed", [any, ...["all", "most", "some", "one", "none"].map((one) => [one, "missed_" + one])]));
const kinds = [any, ["disagree", "disagree"]];
if (flippable) kinds.push(["flipped", "flipped"]);
if (DATA.labelled) kinds.push(["focus_wrong", "focus_wrong"]);
form.append(choose("only", "only", kinds));
if (margined) form.append(choose("margin", "margin", [any, ...["0.5", "1", "2"].map((one) => ["<" + one, "margin_under", one]), ...["2", "4"].map((one) => [">" + one, "margin_over", one])]));
form.append(choose("focus", "focus", [["", "all_runs"], ...runChoices]));
if (DATA.labelled) form.append(choose("right", "right", [["", "–", null], ...runChoices]), choose("wrong", "wrong", [["", "–", null], ...runChoices]));
const sorts = Object.keys(SORTS).filter((one) => (DATA.labelled || one !== "confident") && (DATA.missed || one !== "missed") && (margined || one !== "margin"));
form.append(choose("sort", "sort", sorts.map((one) => [one, "sort_" + one])));

function reset() {
  Object.assign(state, START);
  for (const [name, control] of Object.entries(controls)) control.value = state[name];
  update();
}
form.append(button("reset", reset), count, make("span", "keys", say("keys")));

// Keys work wherever nothing is typed.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape") {
    if (search.value || state.search) { search.value = ""; state.search = ""; update(); }
    event.target.blur?.();
    return;
  }
  if (typing) {
    if (event.target === search && event.key === "Enter") event.target.blur();
    return;
  }
  if (event.key === "/") { search.focus(); search.scrollIntoView({ block: "center" }); }
  else if (event.key === "j" || (event.key === "ArrowDown" && inBrowser())) move(1);
  else if (event.key === "k" || (event.key === "ArrowUp" && inBrowser())) move(-1);
  else return;
  event.preventDefault();
});

// A link to an item.
const places = new Map(items.map((item, place) => [item.id, place]));
function follow() {
  let id = location.hash.slice(1);
  try { id = decodeURIComponent(id); } catch { /* as it stands */ }
  if (!places.has(id)) return;
  if (!shown.includes(places.get(id))) reset();
  show(places.get(id), false);
  document.getElementById("item").scrollIntoView();
}
addEventListener("hashchange", follow);
update();
follow();
