// Tables that are sorted by a click on the head of a column: numbers by value (of "0.3 [0.1, 0.5]" the first), other cells by
// text, empty ones last.
document$.subscribe(() => {
  const key = (row, place) => row.cells[place].textContent.trim();
  const compare = (a, b, down) => {
    if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
    const [x, y] = [parseFloat(a), parseFloat(b)];
    const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
    return down ? -order : order;
  };
  document.querySelectorAll("article table").forEach((table) => {
    const [head] = table.tHead.rows;
    const body = table.tBodies[0];
    [...head.cells].forEach((cell, place) => {
      cell.title = "Sort by this column";
      cell.classList.add("sortable");
      cell.tabIndex = 0;
      const sort = () => {
        const down = cell.getAttribute("aria-sort") === "ascending";
        [...head.cells].forEach((each) => each.removeAttribute("aria-sort"));
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        body.append(...[...body.rows].sort((a, b) => compare(key(a, place), key(b, place), down)));
      };
      cell.addEventListener("click", sort);
      cell.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    });
  });
});
