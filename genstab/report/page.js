"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// Charts: every cell of a panel has a figure for each choice of the panel's selects.
const config = {
  responsive: true,
  displaylogo: false,
  displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,  // on a phone it would cover the chart
  modeBarButtons: [["toImage"]],
  toImageButtonOptions: {format: "png", scale: 2},
};
for (const panel of document.querySelectorAll(".panel")) {
  const {figures, bar} = data.panels[panel.dataset.panel];
  const selects = [...panel.querySelectorAll("select")];
  const charts = [...panel.querySelectorAll(".chart:not(.bar)")];
  const barChart = panel.querySelector(".bar");
  const draw = () => {
    const key = selects.map((select) => select.value).join("|");
    charts.forEach((chart, i) => show(chart, figures[i][key]));
    if (barChart) show(barChart, bar[key]);
    const chosen = panel.querySelector(".chosen");
    if (chosen) chosen.textContent = selects.map((s) => s.selectedOptions[0].textContent).join(", ");
  };
  selects.forEach((select) => select.addEventListener("change", draw));
  draw();
}
function show(chart, figure) {
  if (figure) {
    if (!chart.classList.contains("js-plotly-plot")) chart.textContent = "";
    // On a phone the legend is a column: the chart below it keeps its height.
    const legend = figure.data.filter((trace) => trace.type === "scatter" && trace.showlegend !== false).length;
    const height = figure.layout.height + (chart.clientWidth < 500 ? 19 * legend : 0);
    Plotly.react(chart, figure.data, {...figure.layout, height}, config);
  } else {
    Plotly.purge(chart);
    chart.textContent = "No run has both: choose another pair.";
  }
  const place = chart.closest("figure");  // a run without this layer has no map of it
  if (place) place.hidden = !figure;
}

// A table that is wider than its place says so.
for (const scroll of document.querySelectorAll(".scroll")) {
  const note = document.createElement("p");
  note.className = "wider";
  scroll.before(note);
  const update = () => {
    const edge = scroll.getBoundingClientRect().right;
    const headings = [...scroll.querySelector("thead tr:last-child").cells];
    const beyond = headings.filter((cell) => cell.getBoundingClientRect().right > edge + 1).length;
    note.hidden = scroll.scrollWidth <= scroll.clientWidth + 1;
    note.textContent = beyond
      ? `Wider than the window: ${beyond} more column${beyond > 1 ? "s" : ""} to the right, scroll the table sideways →`
      : "← scroll the table back for its first columns";
  };
  scroll.addEventListener("scroll", update);
  addEventListener("resize", update);
  update();
}

// On paper a chart is as wide as its place there, which is known only before the paper's layout: 3 or 1 in a row.
const PAPER = 1040;
const printed = () => document.querySelectorAll(".js-plotly-plot");
addEventListener("beforeprint", () => {
  for (const chart of printed()) {
    const width = chart.closest(".grid") ? (PAPER - 40) / 3 : chart.matches(".bar") ? 500 : PAPER;
    Plotly.relayout(chart, {width, autosize: false});
  }
});
addEventListener("afterprint", () => {
  for (const chart of printed()) Plotly.relayout(chart, {width: null, autosize: true});
});

// The table sorts by a heading; missing values stay at the end.
for (const button of document.querySelectorAll("table.runs thead button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const body = heading.closest("table").tBodies[0];
    const column = heading.cellIndex;
    const before = heading.getAttribute("aria-sort");
    const ascending = before === "none" ? column === 0 : before === "descending";
    const sign = ascending ? 1 : -1;
    const value = (row) => {
      const cell = row.cells[column];
      return column ? (cell.dataset.value === undefined ? NaN : Number(cell.dataset.value)) : cell.textContent.trim();
    };
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (!column) return sign * x.localeCompare(y, undefined, {numeric: true});
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return sign * (x - y);
    };
    body.append(...[...body.rows].sort(order));
    for (const other of heading.parentElement.cells) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  });
}

// The slider: each canvas shows one frame of a sheet, or of the source a window of its strip.
const slider = document.querySelector(".slider");
if (slider) {
  const range = slider.querySelector("input[type=range]");
  const back = slider.querySelector("input[type=checkbox]");
  const play = slider.querySelector(".play");
  const [frames, columns] = data.sheet;
  const views = [...slider.querySelectorAll("canvas")].map((canvas, i) => {
    const view = {...data.slides[i], canvas, level: canvas.closest("figure").querySelector(".level"), image: new Image()};
    view.image.src = view.uri;
    return view;
  });
  Promise.all(views.map(({image}) => image.decode())).then(() => {
    update();
    slider.removeAttribute("aria-busy");
  });
  function paint({canvas, level, image, scale, whole, strip, decibels}) {
    const {width, height} = canvas;
    const frame = Number(range.value);
    const left = strip ? frames - 1 - frame : (frame % columns) * width;
    const top = strip ? 0 : Math.floor(frame / columns) * height;
    const by = back.checked && !strip ? -frame * scale : 0;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.drawImage(image, left, top, width, height, by, 0, width, height);
    if (by && whole) context.drawImage(image, left, top, width, height, by + width, 0, width, height);
    if (decibels) level.textContent = frame ? `${decibels[frame].toFixed(1)} dB` : "";
  }
  function update() {
    const label = `${range.value} px`;
    slider.querySelector("output").textContent = label;
    range.setAttribute("aria-valuetext", label);
    slider.querySelector(".chosen").textContent =
      `Input moved right by ${label}${back.checked ? ", the output moved back" : ""}`;
    views.forEach(paint);
  }
  let timer = 0;
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  }
  play.addEventListener("click", () => {
    if (timer) return stop();
    timer = setInterval(() => {
      range.value = (Number(range.value) + 1) % (Number(range.max) + 1);
      update();
    }, 160);
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
  });
  range.addEventListener("input", () => { stop(); update(); });
  back.addEventListener("change", update);
}
