(() => {
  "use strict";
  const page = 24;
  const rows = Array.from(document.querySelectorAll("#rows > article"));
  const form = document.querySelector("form.filters");
  if (form) {
    const [group, change, text] = ["f-group", "f-change", "f-text"].map((id) => document.getElementById(id));
    const count = document.getElementById("f-count");
    const more = document.getElementById("f-more");
    const words = rows.map((row) => row.textContent.toLowerCase());
    let limit = page;
    const fits = (row, at) =>
      (!group.value || row.dataset.group === group.value) &&
      (!change.value || row.dataset.change === change.value || "=" + row.dataset.effect === change.value) &&
      words[at].includes(text.value.toLowerCase());
    const show = () => {
      const found = rows.filter(fits);
      const shown = new Set(found.slice(0, limit));
      rows.forEach((row) => { row.hidden = !shown.has(row); });
      more.hidden = found.length <= limit;
      count.textContent = found.length === 0 ? "No reply fits these filters."
        : found.length === rows.length ? shown.size + " of " + rows.length + " shown"
        : shown.size + " of " + found.length + " that fit shown, " + rows.length + " in all";
    };
    const again = () => { limit = page; show(); };
    group.addEventListener("change", again);
    change.addEventListener("change", again);
    text.addEventListener("input", again);
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", () => { limit += page; show(); });
    form.hidden = false;
    show();
  }
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("main > section > details").forEach((one) => { one.open = true; });
  });
  document.documentElement.dataset.ready = "yes";
})();
