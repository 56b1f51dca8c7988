// As much of a document as the page's script touches, so that it runs in Node. There is no HTML in it: a script that
// sets innerHTML fails. Usage: node dom.js PAGE.html [QUERY#HASH] < JavaScript that ends with a value, printed as JSON.
"use strict";
const fs = require("fs");
const vm = require("vm");

const html = fs.readFileSync(process.argv[2], "utf-8");
const [query, hash] = (process.argv[3] ?? "").split("#");
const byId = new Map();

class Element {
  constructor(tag) {
    Object.assign(this, { tagName: tag.toUpperCase(), children: [], style: {}, dataset: {}, attributes: {}, listeners: {}, className: "", value: "" });
  }
  set id(id) { byId.set(id, this); }
  set innerHTML(_) { throw new Error("innerHTML"); }
  get textContent() { return this.children.map((one) => (typeof one === "string" ? one : one.textContent)).join(""); }
  set textContent(text) { this.children = [text]; }
  append(...nodes) { for (const node of nodes) { if (node instanceof Element) node.parent = this; this.children.push(node instanceof Element ? node : String(node)); } }
  replaceChildren(...nodes) { this.children = []; this.append(...nodes); }
  after(node) { node.parent = this.parent; this.parent.children.splice(this.parent.children.indexOf(this) + 1, 0, node); }
  remove() { this.parent.children.splice(this.parent.children.indexOf(this), 1); }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(kind, act) { this.listeners[kind] = act; }
  click() { this.listeners.click({ target: this }); }
  focus() { document.focused = this; }
  blur() { document.focused = null; }
  scrollIntoView() {}
  getBoundingClientRect() { return { top: 0, bottom: 0 }; }
  find(test) { return this.children.filter((one) => one instanceof Element).flatMap((one) => [...(test(one) ? [one] : []), ...one.find(test)]); }
}

const document = { documentElement: new Element("html"), createElement: (tag) => new Element(tag), getElementById: (id) => byId.get(id), addEventListener(kind, act) { this[kind] = act; }, focused: null };
document.documentElement.dataset.lang = "ko";
for (const id of ["language", "theme", "filters", "list", "item", "sec-items"]) new Element("div").id = id;
for (const id of ["words", "data"]) {
  const element = new Element("script");
  element.id = id;
  element.textContent = html.split(`<script type="application/json" id="${id}">`)[1].split("</script>")[0];
}
const context = vm.createContext({
  document, URLSearchParams, performance, innerHeight: 800, setTimeout: (act) => act(), clearTimeout() {},
  location: { search: query ?? "", hash: hash ? "#" + hash : "", pathname: "/page.html" },
  history: { replaceState(_, __, to) { context.location.hash = to.slice(to.indexOf("#")); } },
  matchMedia: () => ({ matches: false }), localStorage: { getItem: () => null, setItem() {} }, addEventListener() {},
  press: (key, target) => document.keydown({ key, target: target ?? document.documentElement, preventDefault() {} }),
  pick(name, value) { const one = byId.get("filters").find((node) => node.name === name)[0]; one.value = value; one.listeners.change(); },
  type(text) { const one = byId.get("search"); one.value = text; one.listeners.input(); },
  byClass: (id, name) => byId.get(id).find((node) => node.className.split(" ").includes(name)),
});
vm.runInContext(html.split("<script>")[1].split("</script>")[0], context);
console.log(JSON.stringify(vm.runInContext(fs.readFileSync(0, "utf-8"), context)));
