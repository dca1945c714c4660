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

  const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
  const id = (name) => document.getElementById(name);
  // Shows the items that match, at most `limit` of them until `more` is pressed.
  const filter = (inputs, items, text, tell, more, limit = Infinity) => {
    if (!inputs[0]) return;
    let most = limit;
    const apply = () => {
      const wanted = words(inputs[0].value);
      let matching = 0;
      for (const item of items) {
        const found = text(item);
        const matches = wanted.every((word) => found.includes(word)) &&
          inputs.slice(1).every((each) => each.value === "" || each.value === item.dataset[each.dataset.of]);
        matching += matches;
        item.hidden = !matches || matching > most;
      }
      const shown = Math.min(matching, most);
      tell.textContent = `${shown} of ${shown < matching ? `${matching} matching rows` : items.length} shown`;
      if (more) more.hidden = shown === matching;
    };
    inputs.forEach((each) => each.addEventListener("input", () => { most = limit; apply(); }));
    if (more) more.addEventListener("click", () => { most += limit; apply(); });
    apply();
  };
  for (const table of all("table.results")) {
    filter([id("model-filter"), id("kind-filter")], [...table.tBodies[0].rows],
      (row) => row.cells[0].textContent.toLowerCase(), id("model-count"));
  }
  const rows = all("#generations article.row");
  const texts = new Map(rows.map((each) => [each, each.textContent.toLowerCase()]));
  filter([id("row-search"), id("set-filter")], rows, (row) => texts.get(row), id("row-count"), id("more-rows"), 20);
})();
