// Search, filter and sort the rows that the page holds as JSON; without it, the first of them stand in the table.
(() => {
  const data = document.getElementById("rows");
  const body = document.getElementById("answers");
  const form = document.getElementById("finder");
  if (!data || !body || !form) return;
  const { rows, columns } = JSON.parse(data.textContent);
  const PAGE = 20;
  let shown = PAGE;
  let order = { column: "", up: false };

  const plain = (pieces) => pieces.map((piece) => piece[0]).join("");
  for (const row of rows) {
    row.words = [row.row_id, ...row.texts.map(plain), plain(row.truth), plain(row.predicted), plain(row.base)]
      .join("\n")
      .toLowerCase();
  }

  const fill = (name, value) => {
    const select = form.elements[name];
    if (!select) return;
    for (const choice of [...new Set(rows.map(value))].sort()) select.append(new Option(choice, choice));
    select.parentElement.hidden = select.options.length < 3 || select.options.length > 60;
  };
  fill("truth", (row) => plain(row.truth));
  fill("predicted", (row) => plain(row.predicted));
  fill("source", (row) => row.source);

  const written = (parent, pieces) => {
    for (const [text, kind, label] of pieces) {
      if (!kind) {
        parent.append(text);
        continue;
      }
      const mark = document.createElement("mark");
      mark.className = kind;
      mark.textContent = text;
      if (label) {
        const small = document.createElement("small");
        small.textContent = label;
        mark.append(small);
      }
      parent.append(mark);
    }
    return parent;
  };

  const cell = (column, row) => {
    const made = document.createElement(column.key === "texts" ? "th" : "td");
    made.className = column.css;
    made.dataset.name = column.title;
    if (column.key === "texts") {
      made.scope = "row";
      for (const text of row.texts) made.append(written(document.createElement("p"), text));
      const id = document.createElement("small");
      id.textContent = row.row_id;
      made.append(id);
    } else if (column.key === "score") {
      made.textContent = row.score;
    } else {
      written(made, row[column.key]);
    }
    return made;
  };

  const sought = () => {
    const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const is = (name, value) => !form.elements[name] || !form.elements[name].value || form.elements[name].value === value;
    const found = rows.filter(
      (row) =>
        words.every((word) => row.words.includes(word)) &&
        is("truth", plain(row.truth)) &&
        is("predicted", plain(row.predicted)) &&
        is("source", row.source)
    );
    if (!order.column) return found;
    const key = (row) => (order.column === "score" ? row.score : order.column === "texts" ? row.texts.map(plain).join() : plain(row[order.column]));
    const sign = order.up ? 1 : -1;
    return [...found].sort((a, b) => sign * key(a).localeCompare(key(b), undefined, { numeric: true }));
  };

  const show = () => {
    const found = sought();
    body.replaceChildren(
      ...found.slice(0, shown).map((row) => {
        const line = document.createElement("tr");
        line.append(...columns.map((column) => cell(column, row)));
        return line;
      })
    );
    const number = (n) => n.toLocaleString("en");
    document.getElementById("found").textContent =
      `${number(Math.min(shown, found.length))} of ${number(found.length)} shown`;
    document.getElementById("more").hidden = found.length <= shown;
  };

  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (form.elements[name]) form.elements[name].value = value; // report.html#words=…&source=…
  }
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    shown = PAGE;
    show();
  });
  document.getElementById("more").addEventListener("click", () => {
    shown += 5 * PAGE;
    show();
  });
  for (const head of document.querySelectorAll("#answer-table thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      order = { column: head.dataset.key, up: order.column === head.dataset.key ? !order.up : true };
      for (const other of document.querySelectorAll("#answer-table thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order.up ? "ascending" : "descending");
      show();
    });
  }
  show();
})();
