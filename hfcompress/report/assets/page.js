"use strict";
// The chart of report.html (drawn by uPlot) and its tables: sort, filter, hide columns, copy.
// It stands before the tables, so that the chart does not wait for their thousands of cells.
(() => {
  document.documentElement.classList.add("script");
  const $ = (selector, inside = document) => inside.querySelector(selector);
  const $$ = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  let chosen = null; // index of the row that is linked in chart and table
  const listeners = [];
  const choose = (row, scroll) => {
    chosen = chosen === row ? null : row;
    for (const line of $$("tr[data-row]")) {
      const is = Number(line.dataset.row) === chosen;
      line.classList.toggle("chosen", is);
      line.setAttribute("aria-selected", String(is));
      if (is && scroll) line.scrollIntoView({ block: "nearest" });
    }
    listeners.forEach((listen) => listen());
  };

  // --- tables ----------------------------------------------------------------------------------

  const value = (cell) => {
    const text = cell.textContent.trim().replace(/\u2212/g, "-").replace(/[,<]/g, "");
    const found = parseFloat(text);
    const unit = / ([GMk])$/.exec(text);
    return Number.isNaN(found) ? null : found * (unit ? { G: 1e9, M: 1e6, k: 1e3 }[unit[1]] : 1);
  };
  const sort = (table, column) => {
    const heads = $$("thead th", table);
    const down = heads[column].getAttribute("aria-sort") !== "descending";
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? (down ? "descending" : "ascending") : "none"));
    const body = $("tbody", table);
    const lines = [...body.rows].map((line) => [line, value(line.cells[column]), line.cells[column].textContent]);
    const text = heads[column].classList.contains("text");
    lines.sort(([, a, first], [, b, second]) => {
      if (text) return down ? first.localeCompare(second) : second.localeCompare(first);
      if (a === null || b === null) return (a === null) - (b === null); // unknown values last
      return down ? b - a : a - b;
    });
    body.append(...lines.map(([line]) => line));
  };
  const hidden = new Map(); // table -> columns that are not shown
  const shown = (table) => {
    const visible = (cell) => !hidden.get(table).has(cell.cellIndex);
    return $$("tr", table).filter((line) => !line.hidden).map((line) => [...line.cells].filter(visible).map((cell) => cell.textContent.trim()));
  };
  const csv = (table) => shown(table).map((cells) => cells.map((cell) => `"${(/^[=+@|%-]/.test(cell) && Number.isNaN(Number(cell)) ? "'" : "") + cell.replace(/"/g, '""')}"`).join(",")).join("\n");
  const markdown = (table) => {
    const lines = shown(table).map((cells) => `| ${cells.map((cell) => cell.replace(/[\\|`*_<>\[\]$]/g, "\\$&")).join(" | ")} |`);
    const rule = `|${$$("thead th", table).filter((head) => !hidden.get(table).has(head.cellIndex)).map((head) => (head.classList.contains("text") ? "---|" : "---:|")).join("")}`;
    return [lines[0], rule, ...lines.slice(1)].join("\n");
  };
  const copy = async (text, button) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // a page that is opened from a file may have no clipboard
      const area = make("textarea", { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const title = button.textContent;
    button.textContent = "copied";
    setTimeout(() => { button.textContent = title; }, 1200);
  };
  const equip = (table, place) => {
    table.id = `rows-${place}`;
    const heads = $$("thead th", table);
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", textContent: head.textContent });
      button.addEventListener("click", () => sort(table, column));
      head.replaceChildren(button);
      head.setAttribute("aria-sort", "none");
    });
    const filter = make("input", { type: "search", placeholder: "filter rows" });
    filter.setAttribute("aria-label", "filter rows");
    const count = make("span", { className: "caption" });
    count.setAttribute("role", "status");
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const line of $("tbody", table).rows) {
        const text = line.textContent.toLowerCase();
        line.hidden = !words.every((word) => text.includes(word));
        left += !line.hidden;
      }
      count.textContent = words.length ? `${left} rows` : "";
    });
    const columns = make("details", {}, make("summary", { textContent: "columns" }));
    const rules = make("style"); // one rule a column: setting each cell takes long
    document.head.append(rules);
    hidden.set(table, new Set());
    const hide = () => {
      rules.textContent = [...hidden.get(table)].map((column) => `#${table.id} tr > :nth-child(${column + 1}) { display: none; }`).join(" ");
    };
    heads.forEach((head, column) => {
      const narrow = innerWidth < 640 && Number(head.dataset.spare) > 1; // a phone: the metric first
      const box = make("input", { type: "checkbox", checked: !narrow });
      if (narrow) hidden.get(table).add(column);
      box.addEventListener("change", () => {
        hidden.get(table)[box.checked ? "delete" : "add"](column);
        hide();
      });
      columns.append(make("label", {}, box, ` ${head.textContent} `));
    });
    hide();
    const buttons = [["copy CSV", csv], ["copy Markdown", markdown]].map(([title, write]) => {
      const button = make("button", { type: "button", textContent: title });
      button.addEventListener("click", () => copy(write(table), button));
      return button;
    });
    table.parentElement.before(make("div", { className: "tools" }, filter, count, ...buttons, columns));
    $("tbody", table).addEventListener("click", (event) => {
      const line = event.target.closest("tr[data-row]");
      if (line) choose(Number(line.dataset.row), false);
    });
    $("tbody", table).addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target.matches("tr[data-row]")) choose(Number(event.target.dataset.row), false);
    });
  };
  addEventListener("DOMContentLoaded", () => $$("table.rows").forEach(equip));

  // --- chart -----------------------------------------------------------------------------------

  const place = $(".chart");
  if (!place || typeof uPlot === "undefined") return;
  const data = JSON.parse($("#points").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = (group) => (dark.matches && data.groups[group] === "#000000" ? "#e6edf3" : data.groups[group]);
  const tip = make("div", { className: "tip", hidden: true });
  let axis = data.axes[0].key;
  let plot = null;
  let front = data.front;

  const points = () => data.points.filter((point) => point.x[axis] !== null).sort((a, b) => a.x[axis] - b.x[axis]);
  const pareto = (known) => {
    const better = data.axes.find(({ key }) => key === axis).better;
    const order = better === "high" ? [...known].reverse() : known;
    let best = -Infinity;
    return order.filter((point) => (point.value > best ? ((best = point.value), true) : false));
  };
  const draw = () => {
    const known = points();
    const groups = Object.keys(data.groups).filter((group) => known.some((point) => point.group === group));
    const columns = groups.map((group) => known.map((point) => (point.group === group ? point.value : null)));
    const low = Math.min(...known.map((point) => point.low ?? point.value));
    const high = Math.max(...known.map((point) => point.high ?? point.value));
    const pad = (high - low || 1) * 0.06;
    const position = (u, point) => [u.valToPos(point.x[axis], "x", true), u.valToPos(point.value, "y", true)];
    const near = (u) => {
      const { left, top } = u.cursor;
      let best = null, distance = 24;
      for (const point of known) {
        if (!u.series[groups.indexOf(point.group) + 1].show) continue;
        const away = Math.hypot(u.valToPos(point.x[axis], "x") - left, u.valToPos(point.value, "y") - top);
        if (away < distance) [best, distance] = [point, away];
      }
      return best;
    };
    const marks = (u) => {
      const { ctx } = u;
      ctx.save();
      ctx.beginPath();
      ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
      ctx.clip();
      if (known.length <= 400) {
        for (const point of known) {
          if (point.low === null || point.high === null || !u.series[groups.indexOf(point.group) + 1].show) continue;
          const [x] = position(u, point);
          ctx.strokeStyle = paint(point.group);
          ctx.globalAlpha = 0.45;
          ctx.beginPath();
          ctx.moveTo(x, u.valToPos(point.low, "y", true));
          ctx.lineTo(x, u.valToPos(point.high, "y", true));
          ctx.stroke();
        }
        ctx.globalAlpha = 1;
      }
      const dense = known.find((point) => point.group === "dense");
      if (dense) {
        ctx.strokeStyle = paint("dense");
        ctx.setLineDash([2, 4]);
        ctx.beginPath();
        ctx.moveTo(u.bbox.left, position(u, dense)[1]);
        ctx.lineTo(u.bbox.left + u.bbox.width, position(u, dense)[1]);
        ctx.stroke();
        ctx.setLineDash([]);
      }
      if (front) {
        ctx.strokeStyle = colour("--ink");
        ctx.setLineDash([6, 4]);
        ctx.beginPath();
        pareto(known).forEach((point, i) => ctx[i ? "lineTo" : "moveTo"](...position(u, point)));
        ctx.stroke();
        ctx.setLineDash([]);
      }
      const linked = known.find((point) => point.row === chosen);
      if (linked) {
        ctx.strokeStyle = colour("--focus");
        ctx.lineWidth = 3;
        ctx.beginPath();
        ctx.arc(...position(u, linked), 9 * devicePixelRatio, 0, 2 * Math.PI);
        ctx.stroke();
      }
      ctx.restore();
    };
    const move = (u) => {
      const point = u.cursor.left < 0 ? null : near(u);
      tip.hidden = !point;
      if (!point) return;
      const interval = point.low === null ? "" : ` (${point.low.toFixed(1)} to ${point.high.toFixed(1)})`;
      tip.textContent = `${point.label}${interval}; ${axis} ${Number(point.x[axis].toPrecision(4))}`;
      const left = u.valToPos(point.x[axis], "x") + u.over.offsetLeft;
      tip.style.left = `${Math.min(left + 12, Math.max(0, place.clientWidth - tip.offsetWidth - 4))}px`;
      tip.style.top = `${u.valToPos(point.value, "y") + u.over.offsetTop + 12}px`;
    };
    const look = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const options = {
      width: place.clientWidth,
      height: Math.max(260, Math.min(430, place.clientWidth * 0.55)),
      scales: { x: { time: false, range: (u, from, to) => (from === to ? [from - 1, to + 1] : [from - (to - from) * 0.03, to + (to - from) * 0.03]) }, y: { range: [low - pad, high + pad] } },
      axes: [{ ...look, label: data.axes.find(({ key }) => key === axis).title }, { ...look, label: data.metric, size: 60 }],
      series: [{}, ...groups.map((group) => ({
        label: group, stroke: paint(group), width: known.length > 400 ? 0 : 1.5, spanGaps: true,
        points: { show: true, size: known.length > 400 ? 5 : 8, fill: paint(group) },
      }))],
      legend: { live: false, markers: { fill: (u, i) => paint(groups[i - 1]) } },
      cursor: { points: { show: false }, drag: { x: true, y: false } },
      hooks: { draw: [marks], setCursor: [move] },
    };
    plot?.destroy();
    plot = new uPlot(options, [known.map((point) => point.x[axis]), ...columns], place);
    place.append(tip);
    plot.over.addEventListener("click", () => {
      const point = near(plot);
      if (point) choose(point.row, true);
    });
  };
  const picker = make("select", { id: "axis" }, ...data.axes.map(({ key, title }) => make("option", { value: key, textContent: title })));
  picker.addEventListener("change", () => { axis = picker.value; draw(); });
  const box = make("input", { type: "checkbox", checked: front });
  box.addEventListener("change", () => { front = box.checked; plot?.redraw(); });
  place.before(make("div", { className: "tools" }, make("label", {}, "against ", picker), make("label", {}, box, " Pareto front"), make("span", { className: "caption", textContent: "drag to zoom, double click to go back, click a point to find its row" })));
  listeners.push(() => plot?.redraw());
  dark.addEventListener("change", draw);
  let width = 0;
  new ResizeObserver(() => {
    if (!place.clientWidth || place.clientWidth === width) return;
    width = place.clientWidth;
    requestAnimationFrame(draw); // drawing inside the observer would resize what it observes
  }).observe(place);
})();
