(function () {
  "use strict";
  var rows = Array.prototype.slice.call(document.querySelectorAll("article[data-group]"));
  var group = document.getElementById("f-group"), change = document.getElementById("f-change");
  var text = document.getElementById("f-text"), count = document.getElementById("f-count");
  function apply() {
    var wanted = text.value.toLowerCase(), shown = 0;
    rows.forEach(function (row) {
      var fits = (!group.value || row.dataset.group === group.value) && (!change.value || row.dataset.change === change.value) &&
        (!wanted || row.textContent.toLowerCase().indexOf(wanted) >= 0);
      row.hidden = !fits;
      if (fits) { shown += 1; }
    });
    count.textContent = shown + " of " + rows.length + " shown";
  }
  if (group && change && text && count) {
    [group, change].forEach(function (one) { one.addEventListener("change", apply); });
    text.addEventListener("input", apply);
    apply();
    document.documentElement.dataset.ready = "yes";
  }
})();
