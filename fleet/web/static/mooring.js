// What htmx does not do: the theme button, the "live / stale since" sign, polling when the stream fails, the telemetry chart, and names typed to confirm.
(() => {
  "use strict";
  const POLL_MS = 15000;
  let staleSince = null;
  let poller = null;

  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-theme-toggle]")) {
      window.mooringTheme.toggle();
    }
  });

  // A change that cannot be taken back wants its subject's name typed; the server checks it again.
  document.addEventListener("input", (event) => {
    const wanted = event.target.dataset.confirms;
    if (wanted !== undefined) {
      const button = event.target.form.querySelector("[data-needs-confirmation]");
      button.disabled = event.target.value !== wanted;
    }
  });

  // --- live ---

  const sign = () => document.querySelector("[data-live-sign]");
  const clock = (moment) => moment.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

  function showLive() {
    staleSince = null;
    clearInterval(poller);
    poller = null;
    const element = sign();
    if (element) {
      element.dataset.state = "live";
      element.textContent = "live";
    }
  }

  function showStale() {
    const element = sign();
    if (!element) {
      return;
    }
    staleSince ??= new Date();
    element.dataset.state = "stale";
    element.textContent = `stale since ${clock(staleSince)}`;
    poller ??= setInterval(poll, POLL_MS);
  }

  // The stream failed: fetch the page now and then and take the same parts out of it.
  async function poll() {
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "manual" });
      if (answer.type === "opaqueredirect") {
        location.reload(); // the session is over: the server sends to the login
        return;
      }
      if (!answer.ok) {
        return;
      }
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live][id]")) {
        const found = fresh.getElementById(part.id);
        if (found && !part.contains(document.activeElement)) {
          htmx.swap(part, found.innerHTML, { swapStyle: "innerHTML" });
        }
      }
      staleSince = new Date();
      showStale();
    } catch {
      // still unreachable: the sign keeps saying since when
    }
  }

  document.addEventListener("htmx:sseOpen", showLive);
  document.addEventListener("htmx:sseError", showStale);
  // Browsers allow few connections to one host: a page that is left closes its stream, one that comes back starts anew.
  const sources = new Set();
  htmx.createEventSource = (url) => {
    const source = new EventSource(url);
    sources.add(source);
    return source;
  };
  window.addEventListener("pagehide", () => sources.forEach((source) => source.close()));
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());

  // A swap must not swallow a click half way through, nor take the focus away from whoever uses the keyboard.
  let pointerIsDown = false;
  let focused = null;
  const holds = new Map();
  document.addEventListener("pointerdown", () => {
    pointerIsDown = true;
  });
  for (const name of ["pointerup", "pointercancel"]) {
    document.addEventListener(name, () => {
      pointerIsDown = false;
      setTimeout(() => {
        for (const [part, html] of holds) {
          htmx.swap(part, html, { swapStyle: "innerHTML" });
        }
        holds.clear();
      }, 0);
    });
  }
  const addressOf = (element) => element.getAttribute("href") ?? element.getAttribute("name");

  function beforePart(event) {
    const part = event.target;
    if (pointerIsDown) {
      holds.set(part, event.detail.data);
      event.preventDefault();
      return;
    }
    const active = document.activeElement;
    if (part.contains(active) && active.matches("input, textarea, select")) {
      event.preventDefault(); // somebody is typing there
      return;
    }
    focused = part.contains(active) ? { tag: active.tagName, address: addressOf(active) } : null;
  }

  function afterPart(event) {
    if (!focused) {
      return;
    }
    const same = [...event.target.querySelectorAll(focused.tag)].find((element) => addressOf(element) === focused.address);
    same?.focus({ preventScroll: true });
    focused = null;
  }

  document.addEventListener("htmx:sseMessage", afterPart);

  // --- telemetry chart ---

  let chart = null;
  const series = { t: [], p50: [], p95: [], fps: [] };
  const KEEP = 600;

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function options(element) {
    const axis = { stroke: color("--m-muted"), grid: { stroke: color("--m-line"), width: 1 }, ticks: { show: false } };
    const points = { show: false };
    return {
      width: element.clientWidth,
      height: 190,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"), // as all times of the console
      fmtDate: (template) => uPlot.fmtDate(template.replaceAll("{h}", "{H}").replaceAll("{aa}", "").replaceAll("{M}/{D}/{YY}", "{YYYY}-{MM}-{DD}")),
      legend: { show: false },
      cursor: { drag: { x: false, y: false } },
      scales: { fps: { range: (_u, _min, max) => [0, Math.max(1, max * 1.15)] }, ms: { range: (_u, _min, max) => [0, Math.max(1, max * 1.15)] } },
      series: [
        {},
        { scale: "ms", stroke: color("--m-series-1"), width: 2, points },
        { scale: "ms", stroke: color("--m-series-2"), width: 1.5, dash: [6, 3], points },
        { scale: "fps", stroke: color("--m-series-3"), width: 1.5, dash: [2, 3], points },
      ],
      axes: [
        { ...axis, space: 70 },
        { ...axis, scale: "ms", size: 50, values: (_u, ticks) => ticks.map((tick) => `${tick} ms`) },
        { ...axis, scale: "fps", side: 1, size: 50, grid: { show: false }, values: (_u, ticks) => ticks.map((tick) => `${tick}/s`) },
      ],
    };
  }

  function draw() {
    const element = document.querySelector("[data-chart]");
    if (!element || !window.uPlot) {
      return;
    }
    chart?.destroy();
    element.replaceChildren();
    chart = new uPlot(options(element), [series.t, series.p50, series.p95, series.fps], element);
  }

  function take(points) {
    for (const point of points) {
      const last = series.t[series.t.length - 1];
      if (last !== undefined && point.t <= last) {
        continue;
      }
      series.t.push(point.t);
      series.p50.push(point.p50);
      series.p95.push(point.p95);
      series.fps.push(point.fps);
    }
    for (const list of Object.values(series)) {
      list.splice(0, Math.max(0, list.length - KEEP));
    }
    if (series.t.length > 0) {
      if (chart) {
        chart.setData([series.t, series.p50, series.p95, series.fps]);
      } else {
        draw();
      }
      const chartElement = document.querySelector("[data-chart]");
      if (chartElement) {
        chartElement.dataset.points = String(series.t.length);
      }
    }
  }

  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    if (event.detail.type === "telemetry") {
      event.preventDefault();
      take(JSON.parse(event.detail.data));
    } else {
      beforePart(event);
    }
  });

  document.addEventListener("mooring:theme", () => chart && draw());
  window.addEventListener("resize", () => chart && draw());
  window.addEventListener("DOMContentLoaded", () => {
    const first = document.querySelector("[data-chart-points]");
    if (first) {
      take(JSON.parse(first.dataset.chartPoints));
    }
  });
})();
