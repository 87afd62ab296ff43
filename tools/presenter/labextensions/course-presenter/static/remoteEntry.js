/* A lecture in JupyterLab: opens its deck (jupyterlab-slideshow draws it), runs its cells, turns pages, makes figures fit, and
   tells presenters' windows where it is. Written by hand, no build: JupyterLab loads this file as it stands.

   `tools/lectures.py` has written into the notebook what is needed: in its own metadata `lecture`, {title}; in that of the first
   cell of each slide, {title, section, minutes, seconds, notes, outline}; in code cells, {source, outputs, size}. */
(() => {
  const IN_DECK = "body .jp-Deck.jp-NotebookPanel .jp-Notebook.jp-mod-commandMode:not(.jp-mod-readWrite) :focus";
  const base = JSON.parse(document.getElementById("jupyter-config-data").textContent).baseUrl;
  const lecture = cell => cell.model.getMetadata("lecture") || {};
  const type = cell => (cell.model.getMetadata("slideshow") || {}).slide_type;
  let app, panel, socket, running = "";

  // Where the deck can stop: at each slide, and at each of its fragments. `slide` counts from 0; `active` is the cell that has
  // the focus there, on slides with a live figure that figure's, so that a click on a slider leaves it where it is.
  function stops() {
    const found = [];
    panel.content.widgets.forEach((cell, index) => {
      if (type(cell) === "slide") found.push({index, active: index, slide: (found.at(-1)?.slide ?? -1) + 1, ...lecture(cell)});
      else if (type(cell) === "fragment") found.push({...found.at(-1), index, active: index});
      else if (lecture(cell).live && found.length && type(cell) !== "skip") found.at(-1).active = index;
    });
    return found;
  }

  function here(all = stops()) {
    let at = 0;
    all.forEach((stop, i) => { if (stop.index <= panel.content.activeCellIndex) at = i; });
    return at;
  }

  function show(stop) {
    if (!stop) return;
    panel.content.mode = "command";
    panel.content.deselectAll();
    panel.content.activeCellIndex = stop.active;
    panel.content.widgets[stop.active].node.focus();
  }

  const go = step => { const all = stops(); show(all[here(all) + step]); };
  const toSlide = slide => show(stops().find(stop => stop.slide === slide));

  // Figures take the room that the rest of the slide leaves.
  function fit() {
    if (!panel || panel.isDisposed || !panel.node.classList.contains("jp-Deck")) return;
    panel.node.querySelectorAll(".jp-Notebook, .jp-WindowedPanel-outer").forEach(node => { node.scrollTop = 0; });
    const cells = panel.content.widgets.map(cell => cell.node).filter(node => node.classList.contains("jp-deck-mod-onscreen"));
    const pictures = cells.flatMap(node => [...node.querySelectorAll("img")]).filter(
      image => image.offsetParent && !(image.naturalWidth === 1 && image.naturalHeight === 1));
    panel.node.style.setProperty("--zoom", 1.4 * Math.min(window.innerWidth / 1280, window.innerHeight / 720));
    if (!pictures.length) return;
    const height = () => cells.reduce((sum, node) => sum + node.getBoundingClientRect().height, 0);
    panel.node.style.setProperty("--figure", "0px");
    const free = window.innerHeight * .94 - height();
    panel.node.style.setProperty("--figure", `${Math.max(100, Math.floor(free / pictures.length))}px`);
  }

  function say(message) { if (socket?.readyState === 1) socket.send(JSON.stringify(message)); }

  function tell(everything = false) {
    if (!panel || panel.isDisposed) return;
    const all = stops(), at = all[here(all)];
    if (!at) return;
    const slides = everything ? all.filter((stop, i) => stop.slide !== all[i - 1]?.slide) : undefined;
    say({deck: panel.model.getMetadata("lecture").title, at: at.slide, running, slides});
  }

  function moved() {
    tell();
    fit();
    for (const wait of [100, 500]) setTimeout(fit, wait);
  }

  function connect() {
    socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}${base}presenter/socket`);
    socket.onopen = () => tell(true);
    socket.onmessage = event => {
      const message = JSON.parse(event.data);
      if (!panel || panel.isDisposed) return;
      if (message.hello) tell(true);
      else if (message.go) go(message.go);
      else if (message.to !== undefined) toSlide(message.to);
    };
    socket.onclose = () => setTimeout(connect, 2000);
  }

  // Run the cells without moving the deck; the title stands meanwhile, and a line below it says how far that is.
  async function run(opened) {
    const line = document.createElement("div");
    line.className = "course-running";
    opened.node.append(line);
    await opened.sessionContext.ready;
    const code = opened.content.widgets.filter(cell => cell.model.type === "code" && cell.model.sharedModel.getSource().trim());
    for (const [done, cell] of code.entries()) {
      if (opened.isDisposed) return;
      running = `running cell ${done + 1} of ${code.length}`;
      line.textContent = running;
      tell();
      await cell.ready;
      const reply = await cell.constructor.execute(cell, opened.sessionContext);
      if (reply?.content.status === "error") {
        running = line.textContent = `cell ${done + 1} failed: ${reply.content.ename}. ${reply.content.evalue}`;
        tell();
        return;
      }
      fit();
    }
    running = "";
    line.remove();
    opened.node.dataset.courseRan = "yes";
    moved();
  }

  async function begin(opened) {
    if (!opened?.content?.activeCellChanged || !opened.context) return;
    await opened.context.ready;
    if (!opened.model?.getMetadata("lecture")) return;
    panel = opened;
    if (opened.node.dataset.courseBegun) return moved();
    opened.node.dataset.courseBegun = "yes";
    opened.content.widgets.forEach(cell => {
      const {source, outputs, size, live, look, letters} = lecture(cell);
      if (source === false) cell.node.dataset.courseSource = "no";
      if (outputs === false) cell.node.dataset.courseOutputs = "no";
      if (live) cell.node.dataset.courseLive = "yes";
      if (size) cell.node.style.setProperty("--code-size", size);
      if (letters) cell.node.style.setProperty("--letters", letters);
      if (look) cell.node.dataset.courseLook = look;
    });
    // Keys in a figure's controls belong to these alone. JupyterLab asks the element with the focus before what it lies in.
    opened.node.addEventListener("focusin", ({target}) => {
      if (target.closest(".jp-OutputArea-output")) target.setAttribute("data-lm-suppress-shortcuts", "true");
    });
    opened.content.activeCellChanged.connect(moved);
    show(stops()[0]);
    await app.commands.execute("deck:start");
    show(stops()[0]);
    tell(true);
    await run(opened);
  }

  function activate(lab) {
    app = lab;
    const style = document.createElement("link");
    Object.assign(style, {rel: "stylesheet", href: `${base}lab/extensions/course-presenter/static/deck.css`});
    document.head.append(style);
    const commands = {
      "presenter:next": ["Next slide or fragment", () => go(1), [["ArrowRight"], ["ArrowDown"], ["Space"], ["PageDown"]]],
      "presenter:previous": ["Previous slide or fragment", () => go(-1),
                             [["ArrowLeft"], ["ArrowUp"], ["Shift Space"], ["PageUp"]]],
      "presenter:first": ["First slide", () => toSlide(0), [["Home"]]],
      "presenter:run": ["Run the cell in place", () => app.commands.execute("notebook:run-cell"), [["Shift Enter"]]],
      "presenter:window": ["Presenter's window", () => window.open(`${base}presenter`, "presenter", "width=900,height=700"), [["P"]]],
      "presenter:full-screen": ["Full screen", () => document.fullscreenElement ? document.exitFullscreen()
                                                                               : document.documentElement.requestFullscreen(), [["F"]]],
    };
    for (const [id, [label, execute, keys]] of Object.entries(commands)) {
      app.commands.addCommand(id, {label, execute});
      for (const key of keys) app.commands.addKeyBinding({command: id, keys: key, selector: IN_DECK});
    }
    app.commands.addKeyBinding({command: "presenter:run", keys: ["Shift Enter"],
                                selector: "body .jp-Deck.jp-NotebookPanel .jp-Notebook.jp-mod-editMode .jp-Cell.jp-mod-active"});
    app.commands.addCommand("presenter:start-here", {label: "Start the deck here", execute: async () => {
      const stop = stops()[here()];
      await app.commands.execute("deck:start");
      show(stop);
    }});
    app.commands.addKeyBinding({command: "presenter:start-here", keys: ["Accel Shift D"], selector: ".jp-NotebookPanel"});
    window.addEventListener("resize", fit);
    connect();
    app.restored.then(() => {
      app.shell.currentChanged.connect((_, change) => begin(change.newValue));
      begin(app.shell.currentWidget);
    });
  }

  const plugin = {id: "course-presenter:plugin", autoStart: true, activate};
  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB["course-presenter"] = {init: () => {}, get: async () => () => ({__esModule: true, default: plugin})};
})();
