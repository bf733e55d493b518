"use strict";
// Sorting: each head of a table with data-sort becomes a button; what is not known stays last.
const keyOf = (row, column) => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
const compare = (a, b) => {
  const numbers = [Number(a), Number(b)];
  return numbers.some(Number.isNaN) ? a.localeCompare(b, "en", { numeric: true }) : numbers[0] - numbers[1];
};
for (const table of document.querySelectorAll("table[data-sort]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].sort((one, two) => {
        const [a, b] = [keyOf(one, column), keyOf(two, column)];
        return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b);
      });
      table.tBodies[0].append(...rows);
    });
  });
}
// Filters: a field names its column, and whether cells must hold it, equal it, or be at most it.
const TESTS = {
  holds: (cell, wanted) => cell.textContent.toLowerCase().includes(wanted.toLowerCase()),
  equals: (cell, wanted) => (cell.dataset.key ?? cell.textContent.trim()) === wanted,
  known: (cell, wanted) => (cell.dataset.key !== "") === (wanted === "yes"),
  most: (cell, wanted) => cell.dataset.key !== "" && Number(cell.dataset.key) <= Number(wanted),
};
for (const form of document.querySelectorAll("form[data-table]")) {
  const rows = [...document.getElementById(form.dataset.table).tBodies[0].rows];
  const fields = [...form.elements].filter((field) => field.dataset.test);
  const count = form.querySelector("[role=status]");
  const update = () => {
    const given = fields.filter((field) => field.value.trim() !== "");
    for (const row of rows) {
      row.hidden = !given.every((field) => TESTS[field.dataset.test](row.cells[field.dataset.column], field.value.trim()));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
  };
  form.hidden = false;
  form.addEventListener("input", update);
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}
// Hints: what a mark of a chart says, under the pointer and at the focus; Escape takes it away.
const hint = document.getElementById("hint");
for (const title of document.querySelectorAll("svg title")) {
  const mark = title.closest("a") ?? title.parentNode;
  mark.dataset.hint = title.textContent;
  if (mark.matches("a")) mark.setAttribute("aria-label", title.textContent);
  title.remove();
}
const show = (event) => {
  const mark = event.target.closest?.("[data-hint]");
  hint.hidden = !mark;
  if (!mark) return;
  hint.textContent = mark.dataset.hint;
  const [box, own] = [mark.getBoundingClientRect(), hint.getBoundingClientRect()];
  const left = Math.min(Math.max(8, box.left + box.width / 2 - own.width / 2), document.documentElement.clientWidth - own.width - 8);
  const top = box.top > own.height + 12 ? box.top - own.height - 6 : box.bottom + 6;
  hint.style.left = `${left + scrollX}px`;
  hint.style.top = `${top + scrollY}px`;
};
document.addEventListener("pointerover", show);
document.addEventListener("focusin", show);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hint.hidden = true; });
// A link into closed details opens them.
const open = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target && target.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
};
addEventListener("hashchange", open);
open();
