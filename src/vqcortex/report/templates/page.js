(function () {
  "use strict";
  var root = document.documentElement;
  var all = function (what, where) { return Array.prototype.slice.call((where || document).querySelectorAll(what)); };

  // Light and dark: the system's choice until the reader makes one.
  var button = document.getElementById("theme");
  var isDark = function () {
    return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  var label = function () {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(isDark()));
    button.setAttribute("aria-label", "Switch to " + button.textContent.toLowerCase() + " colours");
  };
  button.hidden = false;
  button.addEventListener("click", function () {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("vqcortex-theme", root.dataset.theme); } catch (error) { /* not kept */ }
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();

  // Concepts: one panel at a time; without this script they follow one another.
  var list = document.querySelector(".tabs");
  var tabs = all(".tabs a");
  var panels = all(".panel");
  var select = function (number) {
    tabs.forEach(function (tab, place) {
      var chosen = place === number;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      panels[place].hidden = !chosen;
      if (chosen) list.scrollLeft = tab.offsetLeft - (list.clientWidth - tab.offsetWidth) / 2;
    });
  };
  if (list) {
    list.setAttribute("role", "tablist");
    panels.forEach(function (panel) { panel.setAttribute("role", "tabpanel"); panel.tabIndex = 0; });
    tabs.forEach(function (tab, place) {
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", panels[place].id);
      tab.addEventListener("click", function (event) { event.preventDefault(); select(place); });
      tab.addEventListener("keydown", function (event) {
        var last = tabs.length - 1;
        var to = { ArrowRight: place === last ? 0 : place + 1, ArrowLeft: place === 0 ? last : place - 1, Home: 0, End: last }[event.key];
        if (to === undefined && event.key !== " ") return;
        event.preventDefault();
        select(to === undefined ? place : to);
        tabs[to === undefined ? place : to].focus();
      });
    });
    var follow = function () {
      var target = panels.findIndex(function (panel) { return "#" + panel.id === location.hash; });
      if (target >= 0) { select(target); panels[target].scrollIntoView(); }
      return target >= 0;
    };
    addEventListener("hashchange", follow);
    if (!follow()) select(0);

    // The importance drawn over the examples.
    document.querySelector(".tools").hidden = false;
    var overlay = document.getElementById("overlay");
    var opacity = document.getElementById("opacity");
    var redraw = function () {
      root.classList.toggle("plain", !overlay.checked);
      root.style.setProperty("--overlay", opacity.value / 100);
      opacity.disabled = !overlay.checked;
    };
    overlay.addEventListener("change", redraw);
    opacity.addEventListener("input", redraw);
    redraw();
  }

  // Evidence: show the variant whose key the choices spell.
  all("form.chooser").forEach(function (form) {
    var variants = all('.variant[data-level="' + form.dataset.level + '"]');
    var choose = function () {
      var key = all("select", form).map(function (one) { return one.value; }).join("-");
      variants.forEach(function (one) { one.hidden = one.dataset.key !== key; });
    };
    form.addEventListener("change", choose);
    form.addEventListener("submit", function (event) { event.preventDefault(); });
    choose();
  });
})();
