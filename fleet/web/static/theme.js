// Sets light or dark before the first paint: what the person chose, else what the system says. Loaded in the head, without defer.
(() => {
  const chosen = () => {
    try {
      return localStorage.getItem("mooring-theme");
    } catch {
      return null; // storage is switched off: the system decides
    }
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const choice = chosen();
    document.documentElement.dataset.bsTheme = choice ?? (dark.matches ? "dark" : "light");
    document.dispatchEvent(new Event("mooring:theme"));
  };
  dark.addEventListener("change", apply);
  apply();
  window.mooringTheme = {
    toggle() {
      const next = document.documentElement.dataset.bsTheme === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("mooring-theme", next);
      } catch {
        document.documentElement.dataset.bsTheme = next;
      }
      apply();
    },
  };
})();
