// Makes every table.sortable sortable: a button in each heading; ascending, descending, as it was.
// Rows of class "average" stay at the bottom. Cells may say what to sort by (data-sort).
{
  const said = document.createElement("p");
  said.className = "unseen";
  said.setAttribute("role", "status");

  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell?.dataset.sort ?? cell?.firstChild?.textContent.trim() ?? "";
    const number = Number(text.replace(/[−–]/g, "-").replace(/[,%+]/g, ""));
    return text === "" || text === "-" ? null : Number.isNaN(number) ? text : number;
  };

  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true, sensitivity: "base" });
  };

  function sort(table, headings, heading, was) {
    const order = { none: "ascending", ascending: "descending", descending: "none" }[heading.ariaSort ?? "none"];
    for (const other of headings) other.ariaSort = "none";
    heading.ariaSort = order;
    const column = columnOf(heading), sign = order === "descending" ? -1 : 1;
    const last = was.filter((row) => row.classList.contains("average"));
    const rows = was.filter((row) => !last.includes(row));
    if (order !== "none")
      rows.sort((a, b) => {
        const [one, other] = [value(a, column), value(b, column)];
        if (one === null || other === null) return (one === null) - (other === null); // what is missing goes last
        return sign * compare(one, other);
      });
    table.tBodies[0].append(...rows, ...last);
    const name = heading.textContent.trim();
    said.textContent = order === "none" ? "Rows stand as they did at first." : `Sorted by ${name}, ${order}.`;
  }

  const columnOf = (heading) =>
    [...heading.parentNode.cells].slice(0, heading.cellIndex).reduce((sum, cell) => sum + cell.colSpan, 0);

  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells].filter((cell) => cell.textContent.trim());
    const was = [...table.tBodies[0].rows];
    for (const heading of headings) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sort(table, headings, heading, was));
      heading.append(button);
      heading.ariaSort = "none";
    }
  }
  document.body.append(said);
}
