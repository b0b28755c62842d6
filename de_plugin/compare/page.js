"use strict";
const status = document.getElementById("status");
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const table = head.closest("table");
    const body = table.tBodies[0];
    const at = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[at].dataset.value ?? row.cells[at].textContent;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const [n, m] = [Number(x), Number(y)];
      const way = Number.isNaN(n) || Number.isNaN(m) ? x.localeCompare(y) : n - m;
      return down ? -way : way;
    };
    body.append(...Array.from(body.rows).sort(order));
    status.textContent = `Sorted by ${button.textContent}, ${down ? "descending" : "ascending"}.`;
  });
}
const dialog = document.getElementById("large");
const place = document.getElementById("large-figure");
let home = null;
for (const button of document.querySelectorAll("button.zoom")) {
  button.addEventListener("click", () => {
    home = button;
    button.style.minHeight = `${button.offsetHeight}px`; // the page stays as long as it is
    document.getElementById("large-title").textContent = button.closest("figure").dataset.title;
    place.append(button.querySelector("svg"));
    dialog.showModal();
  });
}
dialog.addEventListener("close", () => {
  if (home) home.append(place.querySelector("svg"));
  if (home) home.style.minHeight = "";
  home = null;
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.closest(".close")) dialog.close();
});
