"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Numbers before texts, and what was not measured last in either direction.
  const compare = (one, other) => {
    const [a, b] = [Number(one), Number(other)];
    if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
    return one.localeCompare(other, "en", { numeric: true });
  };
  for (const button of all("th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = head.closest("table").tBodies[0];
      const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const key = (row) => row.cells[head.cellIndex].dataset.value;
      body.append(...[...body.rows].sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * compare(a, b);
      }));
    });
  }

  const results = document.querySelector("table.results");
  const everything = document.getElementById("all-metrics");
  const showMetrics = () => all(".more", results).forEach((each) => { each.hidden = !everything.checked; });
  everything.addEventListener("change", showMetrics);
  showMetrics();

  const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
  const filter = (inputs, items, text, tell) => {
    if (!inputs[0]) return;
    const apply = () => {
      const wanted = words(inputs[0].value);
      let shown = 0;
      for (const item of items) {
        const found = text(item);
        item.hidden = !wanted.every((word) => found.includes(word)) ||
          inputs.slice(1).some((each) => each.value !== "" && each.value !== item.dataset[each.dataset.of]);
        shown += !item.hidden;
      }
      tell.textContent = `${shown} of ${items.length} shown`;
    };
    inputs.forEach((each) => each.addEventListener("input", apply));
    apply();
  };
  const id = (name) => document.getElementById(name);
  filter([id("model-filter"), id("kind-filter")], [...results.tBodies[0].rows],
    (row) => row.cells[0].textContent.toLowerCase(), id("model-count"));
  const rows = all("article.row");
  const texts = new Map(rows.map((each) => [each, each.textContent.toLowerCase()]));
  filter([id("row-search"), id("set-filter")], rows, (row) => texts.get(row), id("row-count"));
})();
