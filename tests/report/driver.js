// Appended to a copy of the page, whose policy allows it, after the page's own script. What it finds is the body's text.
// All of it happens while the page loads, after which Chromium prints the document.
"use strict";
addEventListener("load", () => {
  const found = { loaded: performance.now(), violations, problems, scripts: document.scripts.length };
  const target = () => document.activeElement ?? document.body;
  const press = (key) => target().dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const chosen = () => document.querySelector("#item h3").textContent;
  const listed = () => document.querySelectorAll("#list .row").length;
  found.listed = listed();
  found.seen = [chosen()];
  for (const key of ["j", "k"]) {
    press(key);
    found.seen.push(chosen());
  }
  press("/");
  found.searching = document.activeElement.id;
  document.activeElement.value = "made-0005";
  document.activeElement.dispatchEvent(new Event("input", { bubbles: true }));
  found.few = listed();
  press("Escape");
  found.all = listed();
  const select = document.querySelector("select[name=category]");
  found.times = ["1", "2", "3", ""].map((value) => {
    const start = performance.now();
    select.value = value;
    select.dispatchEvent(new Event("change"));
    void document.body.offsetHeight; // lays it out
    return performance.now() - start;
  });
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.shown = ["ko", "en"].map((language) => {
    document.documentElement.dataset.lang = language;
    return ["ko", "en"].filter((one) => document.querySelector(`#sec-runs h2 .${one}`).offsetWidth > 0).join();
  });
  found.requests = performance.getEntriesByType("resource").map((one) => one.name);
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
});
