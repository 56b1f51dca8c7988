// Appended to a copy of the page, whose policy allows it, after the page's own script. What it finds is the body's text.
"use strict";
addEventListener("load", async () => {
  const found = { loaded: performance.now(), violations, problems, scripts: document.scripts.length };
  const pause = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
  const press = (key) => (document.activeElement ?? document.body).dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const chosen = () => document.querySelector("#item h3").textContent;
  const listed = () => document.querySelectorAll("#list .row").length;
  found.listed = listed();
  found.seen = [chosen()];
  for (const key of ["j", "k"]) { press(key); found.seen.push(chosen()); }
  press("/");
  found.searching = document.activeElement.id;
  document.activeElement.value = "made-0005";
  document.activeElement.dispatchEvent(new Event("input", { bubbles: true }));
  await new Promise((done) => setTimeout(done, 200));
  found.few = listed();
  press("Escape");
  found.all = listed();
  found.times = [];
  for (const value of ["1", "2", ""]) {
    const select = document.querySelector("select[name=category]");
    const start = performance.now();
    select.value = value;
    select.dispatchEvent(new Event("change"));
    document.body.offsetHeight; // lays it out
    found.times.push(performance.now() - start);
    await pause();
  }
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.shown = ["ko", "en"].map((language) => {
    document.documentElement.dataset.lang = language;
    return ["ko", "en"].filter((one) => document.querySelector(`#sec-runs h2 .${one}`).offsetWidth > 0).join();
  });
  found.requests = performance.getEntriesByType("resource").map((one) => one.name);
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
});
