// Draws the charts of a page from the numbers in their data-plot attribute, again whenever they were swapped.
(() => {
  "use strict";
  const HEIGHT = 190;
  const drawn = new Map();
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];

  const short = (value) => {
    if (value === null || value === undefined) {
      return "";
    }
    const size = Math.abs(value);
    if (size >= 1e6 || (size > 0 && size < 1e-3)) {
      return value.toExponential(0);
    }
    return size >= 1000 ? `${+(value / 1000).toFixed(1)}k` : String(+value.toPrecision(3));
  };

  // An alarm's onset and crossing: lines across the plot, each said in words under the chart.
  function marked(marks) {
    return (plot) => {
      const { ctx, bbox } = plot;
      ctx.save();
      for (const [row, mark] of marks.entries()) {
        const x = Math.round(plot.valToPos(mark.t, "x", true));
        if (x < bbox.left || x > bbox.left + bbox.width) {
          continue;
        }
        ctx.strokeStyle = color(mark.kind === "onset" ? "--m-warn" : "--m-bad");
        ctx.lineWidth = 2;
        ctx.setLineDash(mark.kind === "onset" ? [4, 4] : []);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
        ctx.fillStyle = color("--m-text");
        ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
        ctx.textAlign = "left";
        ctx.fillText(mark.label, x + 4, bbox.top + 14 * (row + 1) * devicePixelRatio);
      }
      ctx.restore();
    };
  }

  const HOUR_S = 3600;
  // Marks are in the picture; and one point alone, which uPlot gives an axis of years, gets an hour.
  function span(marks) {
    return (plot, low, high) => {
      const moments = [...plot.data[0], ...marks.map((mark) => mark.t)];
      if (moments.length === 0) {
        return [low, high];
      }
      const first = Math.min(...moments);
      const last = Math.max(...moments);
      const lacking = Math.max(0, HOUR_S - (last - first)) / 2;
      return [first - lacking, last + lacking];
    };
  }

  // Of a logarithmic axis powers of ten alone, and of many of them every second, third, …
  function decades(_plot, splits) {
    const powers = splits.map((value) => Math.log10(value));
    const whole = powers.filter((power) => Math.abs(power - Math.round(power)) < 1e-6);
    const every = Math.max(1, Math.ceil(whole.length / 6));
    return splits.map((value, index) => {
      const power = Math.round(powers[index]);
      return Math.abs(powers[index] - power) < 1e-6 && power % every === 0 ? value : null;
    });
  }

  function options(element, given) {
    const axis = { stroke: color("--m-muted"), grid: { stroke: color("--m-line"), width: 1 }, ticks: { show: false } };
    const few = given.t.length < 60;
    return {
      width: element.clientWidth,
      height: HEIGHT,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      fmtDate: (template) => uPlot.fmtDate(template.replaceAll("{h}", "{H}").replaceAll("{aa}", "").replaceAll("{M}/{D}/{YY}", "{YYYY}-{MM}-{DD}")),
      legend: { show: false },
      cursor: { drag: { x: false, y: false } },
      scales: { x: { range: span(given.marks) }, y: given.log ? { distr: 3 } : { range: (_plot, low, high) => [Math.min(0, low), high > 0 ? high * 1.1 : 1] } },
      series: [
        {},
        ...given.lines.map((line, index) => ({
          label: line.label,
          stroke: color(`--m-series-${(index % 4) + 1}`),
          width: index === 0 ? 2 : 1.5,
          dash: DASHES[index % DASHES.length],
          points: { show: few, size: 4 },
        })),
      ],
      axes: [
        { ...axis, space: 70 },
        {
          ...axis,
          size: 56,
          values: (_plot, ticks) => ticks.map(short),
          ...(given.log ? { filter: decades, grid: { ...axis.grid, filter: decades } } : {}),
        },
      ],
      hooks: { draw: [marked(given.marks)] },
    };
  }

  function draw(element) {
    const given = JSON.parse(element.dataset.plot);
    const values = given.lines.map((line) => (given.log ? line.values.map((value) => (value > 0 ? value : null)) : line.values));
    drawn.get(element)?.destroy();
    element.replaceChildren();
    drawn.set(element, new uPlot(options(element, given), [given.t, ...values], element));
    element.dataset.drawn = String(given.t.length);
  }

  function drawAll() {
    for (const element of drawn.keys()) {
      if (!element.isConnected) {
        drawn.get(element).destroy();
        drawn.delete(element);
      }
    }
    document.querySelectorAll("[data-plot]").forEach(draw);
  }

  // Tables that somebody opened stay open when fresh numbers come.
  const opened = new Set();
  document.addEventListener(
    "toggle",
    (event) => {
      if (event.target.matches("details[id]") && event.target.isConnected) {
        opened[event.target.open ? "add" : "delete"](event.target.id);
      }
    },
    true,
  );

  let isDue = false;
  function afterSwap() {
    if (isDue) {
      return;
    }
    isDue = true;
    queueMicrotask(() => {
      isDue = false;
      document.querySelectorAll("details[id]").forEach((element) => {
        element.open ||= opened.has(element.id);
      });
      drawAll();
    });
  }

  document.addEventListener("htmx:afterSwap", afterSwap);
  document.addEventListener("htmx:sseMessage", afterSwap);
  document.addEventListener("mooring:theme", drawAll);
  window.addEventListener("resize", drawAll);
  window.addEventListener("DOMContentLoaded", drawAll);
})();
