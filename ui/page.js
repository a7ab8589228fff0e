// Two things Gradio leaves out: names for its Send and Stop icons, and the focus back in the message box after an answer.
(() => {
  const names = { "submit-button": "Send message", "stop-button": "Stop the answer" };
  let wasBusy = false;

  const focusBox = (triesLeft) => {
    const box = document.querySelector("#message textarea");
    if (!box || document.activeElement !== document.body) return;
    if (!box.disabled) box.focus();
    else if (triesLeft > 0) setTimeout(focusBox, 100, triesLeft - 1);
  };

  const refresh = () => {
    for (const [cls, name] of Object.entries(names)) {
      for (const button of document.querySelectorAll(`#message button.${cls}:not([aria-label])`)) {
        button.setAttribute("aria-label", name);
        button.title = name;
      }
    }
    const isBusy = document.querySelector("#message button.stop-button") !== null;
    // Not where a keyboard would slide up over the answer.
    if (wasBusy && !isBusy && matchMedia("(pointer: fine)").matches) focusBox(10);
    wasBusy = isBusy;
  };

  new MutationObserver(refresh).observe(document.documentElement, { childList: true, subtree: true });
  refresh();
})();
