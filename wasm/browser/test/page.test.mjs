// The demo page, as a person uses it.

import assert from "node:assert/strict";
import { createServer } from "node:net";
import { after, before, test } from "node:test";

import { LIMIT, Lab } from "./lab.mjs";

let lab;
before(async () => {
  // A name for this machine that is not trusted as it is itself.
  lab = await Lab.open({ args: ["--no-sandbox", "--host-resolver-rules=MAP plain.test 127.0.0.1"] });
}, { timeout: LIMIT });
after(() => lab?.close());

async function open(path, { origin = "http://unisockets.localhost", ...settings } = {}) {
  const context = await lab.browser.newContext(settings);
  const page = await context.newPage();
  page.setDefaultTimeout(LIMIT);
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(error.stack));
  page.on("console", (message) => message.type() === "error" && page.problems.push(message.text()));
  await page.goto(`${origin}:${lab.signalPort}${path}`);
  return page;
}

async function joined(name, rest = "", settings = {}) {
  const page = await open(`/?network=home&name=${name}${rest}`, settings);
  await page.locator("#self-ipv4").filter({ hasText: /^10\.80\./ }).waitFor();
  return page;
}

test("an invitation joins by itself, and its secret leaves the address bar", { timeout: LIMIT }, async () => {
  const page = await joined("guest", "#correct%20horse%20battery%20staple");
  assert.equal(new URL(page.url()).hash, "");
  assert.match(await page.locator("#self-network").textContent(), /^home~[0-9a-f]{32}$/);
  assert.match(await page.locator("#state").textContent(), /^On home~/);
  const [network, address] = [await page.locator("#self-network").textContent(), await page.locator("#self-ipv4").textContent()];
  await page.reload();
  await page.locator("#self-ipv4").filter({ hasText: address }).waitFor();
  assert.equal(await page.locator("#self-network").textContent(), network);
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("a native program gets the page that is being edited, and the tab browses a native server", { timeout: LIMIT }, async () => {
  const page = await joined("editor");
  await page.locator("#content").fill("<h1>Edited in a tab</h1>");
  const ask = async () => {
    const nc = lab.run("nc", "--network", "home", "--name", "reader", "editor", "80");
    nc.process.stdin.end("GET / HTTP/1.1\r\nHost: editor\r\nConnection: close\r\n\r\n");
    return (await nc.output()).toString();
  };
  assert.match(await ask(), /<h1>Edited in a tab<\/h1>/);
  await page.locator("#requests").filter({ hasText: "1 requests" }).waitFor();
  const server = lab.run("serve", "--network", "home", "--name", "library", "80", "site");
  await server.line(/library/);
  await page.locator("#address").fill("http://library/");
  await page.locator("#browse button").press("Enter");
  const frame = page.frameLocator("#view").frameLocator("iframe");
  // The page that a member serves is as alive as any: this one, without the files behind it, says so in its script.
  await frame.getByText("This tab is not on a network yet.").waitFor();
  await page.locator("#members").getByText("library").waitFor();
  await page.getByRole("button", { name: "Ping library" }).press("Enter");
  await page.locator("#members").getByText(/10\.80\.\d+\.\d+: [\d.]+ ms/).waitFor();
  await page.locator("#links").getByText("direct").waitFor();
  await page.locator("#links").getByText(/[\d.]+ ms/).first().waitFor();
  await page.locator("#links").getByText(/[\d.]+ MB\/s/).first().waitFor();
  await page.locator("#sockets").getByText(/:80\b/).first().waitFor();
  await page.locator("#packets").getByText("echo request, code 0").first().waitFor();
  const waiting = page.waitForEvent("download");
  await page.locator("#capture").click();
  assert.equal((await waiting).suggestedFilename(), "editor.pcapng");
  await server.kill();
  await page.context().close();
});

test("a file goes from one tab to another", { timeout: LIMIT }, async () => {
  const [from, to] = [await joined("giver"), await joined("taker")];
  const choosing = from.waitForEvent("filechooser");
  await from.getByRole("button", { name: "Send a file taker" }).click();
  await (await choosing).setFiles({ name: "a gift.bin", mimeType: "application/octet-stream", buffer: Buffer.alloc(3_000_000, 7) });
  await to.locator("#files").getByText("3.0 MB").waitFor();
  const waiting = to.waitForEvent("download");
  await to.getByRole("link", { name: "a gift.bin" }).click();
  const download = await waiting;
  assert.equal(download.suggestedFilename(), "a gift.bin");
  await from.getByText(/a gift\.bin: 3\.0 MB at/).waitFor();
  await to.getByRole("button", { name: "Forget a gift.bin" }).press("Enter");
  await to.locator("#files").getByText("None yet.").waitFor();
  assert.equal(await to.evaluate(() => document.activeElement.id), "files");
  for (const page of [from, to]) {
    assert.deepEqual(page.problems, []);
    await page.context().close();
  }
});

/** Others come and go every few seconds; whoever uses the keyboard was thrown back to the top of the page each time. */
test("the keyboard stays where it is while members come and go", { timeout: LIMIT }, async () => {
  const page = await joined("typist");
  const stays = await joined("stays");
  const button = page.getByRole("button", { name: "Ping stays" });
  await button.focus();
  const another = await joined("another");
  await page.getByRole("button", { name: "Ping another" }).waitFor();
  const focused = () => page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.textContent);
  const name = await focused();
  assert.match(name, /Ping/);
  await another.context().close();
  await page.getByRole("button", { name: "Ping another" }).waitFor({ state: "detached" });
  assert.equal(await focused(), name);
  // All that can be done is reached with the key Tab.
  await page.evaluate(() => (document.activeElement.blur(), scrollTo(0, 0)));
  const reached = new Set();
  for (let turn = 0; turn < 60; turn += 1) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim()));
  }
  for (const wanted of ["content", "address", "capture", "leave"]) assert.ok(reached.has(wanted), `${wanted} of ${[...reached]}`);
  for (const each of [page, stays]) await each.context().close();
});

test("a file that is not taken whole was not taken, and one that is not answered for can be cancelled", { timeout: LIMIT }, async () => {
  const page = await joined("postman");
  const other = await lab.tab("picky", { options: { network: "home" } });
  const give = async (size) => {
    const choosing = page.waitForEvent("filechooser");
    await page.getByRole("button", { name: "Send a file picky" }).click();
    await (await choosing).setFiles({ name: "gift.bin", mimeType: "application/octet-stream", buffer: Buffer.alloc(size, 7) });
  };
  // It says yes before it has seen anything, then nothing at all.
  await other.evaluate(async () => {
    const listener = await node.listen(80);
    void (async () => {
      const hasty = await listener.accept();
      await hasty.read();
      await hasty.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
      await hasty.shutdown();
      globalThis.sleepy = await listener.accept();
    })();
  });
  await give(30_000_000);
  await page.locator("#problem").filter({ hasText: "picky did not take gift.bin: it wanted no more than the beginning" }).waitFor();
  await give(100);
  await page.getByRole("button", { name: "Cancel gift.bin to picky" }).click();
  await page.locator("#problem").filter({ hasText: "picky did not take gift.bin: it was cancelled here" }).waitFor();
  assert.deepEqual(page.problems, []);
  for (const each of [page, other]) await each.context().close();
});

test("what is wrong is said: a taken name, a bad one, an address that nobody has", { timeout: LIMIT }, async () => {
  const first = await joined("only");
  const second = await open("/?network=home&name=only");
  await second.locator("#problem").filter({ hasText: "another member has that name" }).waitFor();
  await second.locator("#name").fill("not a name!");
  await second.locator("#join button").click();
  await second.locator("#problem").filter({ hasText: "1 to 63 of the letters" }).waitFor();
  await second.locator("#name").fill("other");
  await second.locator("#join button").click();
  await second.locator("#self-ipv4").filter({ hasText: /^10\.80\./ }).waitFor();
  await second.locator("#address").fill("http://nobody/");
  await second.locator("#browse button").click();
  await second.locator("#problem").filter({ hasText: "nobody" }).waitFor();
  await second.locator("#leave").click();
  await second.locator("#join").waitFor();
  for (const page of [first, second]) await page.context().close();
});

/** What a hostile page tries from within the frame; it reports to its own server, which is all that it can reach. */
function probe() {
  const tried = {};
  const attempt = async (name, work) => {
    const limit = new Promise((resolve) => setTimeout(() => resolve("nothing happens"), 3000));
    tried[name] = await Promise.race([Promise.resolve().then(work), limit]).then((value) => String(value), (error) => `refused: ${error.name}`);
  };
  const shut = (socket) => new Promise((resolve) => ((socket.onopen = () => resolve("open")), (socket.onerror = () => resolve("refused"))));
  const port = location.port;
  const rtc = () => new RTCPeerConnection({ iceServers: [] });
  void (async () => {
    await attempt("document of the page", () => parent.parent.document.title);
    await attempt("secret of the page", () => parent.parent.location.href);
    await attempt("storage of the page", () => parent.parent.localStorage.length);
    await attempt("storage", () => `${localStorage.length} ${sessionStorage.length}`);
    await attempt("databases", async () => (await indexedDB.databases()).length);
    await attempt("the page's own files", () => fetch(`http://unisockets.localhost:${port}/page.js`).then((answer) => answer.status));
    await attempt("another member", () => fetch("http://bystander/").then((answer) => answer.status));
    await attempt("another member by path", () => fetch("//bystander/").then((answer) => answer.status));
    await attempt("another member by message", async () => {
      const { port1, port2 } = new MessageChannel();
      const heard = new Promise((resolve) => (port1.onmessage = ({ data }) => resolve(JSON.stringify(data))));
      parent.parent.postMessage({ kind: "request", path: "//bystander/", method: "GET", headers: [] }, "*", [port2]);
      return heard;
    });
    await attempt("signaling here", () => shut(new WebSocket(`ws://${location.host}/v1`)));
    await attempt("signaling there", () => shut(new WebSocket(`ws://unisockets.localhost:${port}/v1`)));
    await attempt("image from outside", () => new Promise((resolve) => {
      const image = new Image();
      image.onload = () => resolve("loaded");
      image.onerror = () => resolve("refused");
      image.src = `http://unisockets.localhost:${port}/favicon.png`;
    }));
    await attempt("window", () => String(open("about:blank")));
    await attempt("top", () => ((top.location = "about:blank#taken"), "sent"));
    await attempt("worker", async () => {
      const all = await navigator.serviceWorker.getRegistrations();
      for (const each of all) await each.unregister();
      return all.length;
    });
    await fetch("/report", { method: "POST", body: JSON.stringify(tried) });
    document.body.append("reported");
  })();
}

test("a hostile page in the frame reaches its own member, and nothing else", { timeout: 2 * LIMIT }, async () => {
  const options = { network: "home", secret: "a-secret-of-the-page" };
  const bystander = await lab.tab("bystander", { options });
  await bystander.evaluate(async () => {
    globalThis.asked = 0;
    await node.serve({ port: 80 }, () => new Response(String((asked += 1))));
  });
  const evil = await lab.tab("evil", { options });
  await evil.evaluate(async (probe) => {
    const html = { "content-type": "text/html", "x-frame-options": "DENY", "set-cookie": "a=b", "clear-site-data": '"*"' };
    await node.serve({ port: 80 }, async (request, { headers }) => {
      const { pathname } = new URL(request.url);
      if (pathname === "/report") globalThis.report = await request.json();
      if (pathname === "/go") return new Response(null, { status: 302, headers: { location: "http://evil/two" } });
      if (pathname === "/two") return new Response(`<p>the second page, for ${headers.get("host")}</p>`, { headers: html });
      if (pathname === "/again") return new Response("<script>parent.location.reload()</script>", { headers: html });
      return new Response(`<p>shown</p><a href="http://evil/go">on</a> <a href="http://bystander/">away</a><script>(${probe})()</script>`, { headers: html });
    });
    await node.serve({ port: 8080 }, (_, { headers }) => new Response(`the other port, for ${headers.get("host")}`, { headers: html }));
  }, String(probe));
  const victim = await joined("victim", "#a-secret-of-the-page");
  await victim.locator("#address").fill("evil");
  await victim.locator("#browse button").click();
  const frame = victim.frameLocator("#view").frameLocator("iframe");
  await frame.getByText("reported").waitFor();
  const report = await evil.evaluate(() => report);
  assert.deepEqual(report, {
    "document of the page": "refused: SecurityError",
    "secret of the page": "refused: SecurityError",
    "storage of the page": "refused: SecurityError",
    storage: "0 0",
    databases: "0",
    "the page's own files": "refused: TypeError",
    "another member": "refused: TypeError",
    "another member by path": "refused: TypeError",
    "another member by message": "nothing happens",
    "signaling here": "refused",
    "signaling there": "refused",
    "image from outside": "refused",
    window: "null",
    top: "refused: SecurityError",
    worker: "1",
  });
  assert.equal(await bystander.evaluate(() => asked), 0);
  assert.equal(await victim.title(), "unisockets: this tab is a host");
  // Links: to the member by its name they stay in its origin, to another one they are the reader's to follow.
  await victim.locator("#address").fill("http://ev");
  await frame.getByText("away").click();
  await victim.locator("#leads").filter({ hasText: "http://bystander/" }).waitFor();
  // What somebody is about to send is not the page's to change.
  assert.equal(await victim.locator("#address").inputValue(), "http://ev");
  await frame.getByText("on", { exact: true }).click();
  await frame.getByText("the second page, for evil").waitFor();
  assert.equal(await victim.locator("#address").inputValue(), "http://evil/two");
  // Another port is another origin; and a page that reloads the frame around it does no more than that.
  await victim.locator("#address").fill("http://evil:8080/");
  await victim.locator("#browse button").click();
  await frame.getByText("the other port, for evil:8080").waitFor();
  for (const path of ["again", "two"]) {
    await victim.locator("#address").fill(`http://evil/${path}`);
    await victim.locator("#address").press("Enter");
    await victim.locator("#browse button:enabled").waitFor();
  }
  await frame.getByText("the second page, for evil").waitFor();
  for (const each of [victim, evil, bystander]) await each.context().close();
});

/** Whatever a member's page navigates to, loads or hints at: nothing is asked of the reader's machine or its neighbours. */
test("nothing that a page in the frame does reaches the machine's own network", { timeout: 2 * LIMIT }, async (t) => {
  const reached = [];
  let current;
  const host = createServer((socket) => {
    socket.on("error", () => undefined);
    socket.once("data", (data) => reached.push(data.toString().split("\r\n")[0]));
    // Chromium opens a connection to where a frame is about to go before it asks whether it may; nothing is said on it.
    if (current !== "/location") reached.push(`a connection at ${current}`);
  });
  await new Promise((resolve) => host.listen(0, "127.0.0.1", resolve));
  t.after(() => host.close());
  const at = (path) => `http://127.0.0.1:${host.address().port}/${path}`;
  const script = (work) => `<p>shown</p><script>addEventListener("load", () => { ${work} })</script>`;
  const pages = {
    "/location": script(`location = "${at("location")}"`),
    "/parent": script(`parent.location = "${at("parent")}"`),
    "/nested": `<p>shown</p><iframe src="${at("nested")}"></iframe><object data="${at("object")}"></object><embed src="${at("embed")}">`,
    "/form": `<form id="f" method="post" action="${at("form")}"><input name="a" value="b"></form>${script("f.submit()")}`,
    "/meta": `<meta http-equiv="refresh" content="0;url=${at("meta")}"><p>shown</p>`,
    "/hints": `<link rel="prefetch" href="${at("prefetch")}"><link rel="preload" as="image" href="${at("preload")}"><link rel="modulepreload" href="${at("module")}"><p>shown</p>`,
    "/loads": `<img src="${at("img")}"><script src="${at("script")}"></script><link rel="stylesheet" href="${at("style")}"><video src="${at("video")}"></video>${script(`fetch("${at("fetch")}").catch(() => 0); navigator.sendBeacon("${at("beacon")}"); new EventSource("${at("events")}"); new WebSocket("${at("socket").replace("http", "ws")}")`)}`,
  };
  // What a page breaks of its own policy the browser would report to wherever the policy says.
  pages["/reports"] = `<meta http-equiv="content-security-policy" content="img-src 'none'; report-uri ${at("meta-report")}"><img src="/x.png"><p>shown</p>`;
  const policy = `img-src 'none'; font-src 'none'; report-uri ${at("report")}; report-to main`;
  const reporting = {
    "content-security-policy": policy,
    "content-security-policy-report-only": policy,
    "reporting-endpoints": `main="${at("endpoint")}", default="${at("default")}"`,
    "report-to": JSON.stringify({ group: "main", max_age: 100, endpoints: [{ url: at("report-to") }] }),
    nel: JSON.stringify({ report_to: "main", max_age: 100, success_fraction: 1 }),
    link: `<${at("link")}>; rel=preload; as=image`,
    refresh: `0; url=${at("refresh")}`,
  };
  const evil = await lab.tab("navigator", { options: { network: "home" } });
  await evil.evaluate(
    ([pages, reporting]) =>
      node.serve({ port: 80 }, (request) => {
        const { pathname } = new URL(request.url);
        return new Response(pages[pathname], { headers: { "content-type": "text/html", ...(pathname === "/reports" ? reporting : {}) } });
      }),
    [pages, reporting],
  );
  const victim = await joined("walker");
  for (const path of Object.keys(pages)) {
    current = path;
    await victim.locator("#address").fill(`http://navigator${path}`);
    await victim.locator("#address").press("Enter");
    await victim.locator("#browse button:enabled").waitFor();
    await victim.waitForTimeout(1_500);
  }
  assert.deepEqual(reached, []);
  for (const each of [victim, evil]) await each.context().close();
});

/** Links were dead until all of a page had come. */
test("links within a member's page work before it has loaded, and where they ask for a window", { timeout: LIMIT }, async () => {
  const server = await lab.tab("slowly", { options: { network: "home" } });
  await server.evaluate(() =>
    node.serve({ port: 80 }, (request) => {
      const { pathname } = new URL(request.url);
      const html = (body) => new Response(body, { headers: { "content-type": "text/html" } });
      if (pathname !== "/") return html(`<p>this is ${pathname}</p><a href="/window" target="_blank">a window</a>`);
      const begun = new TextEncoder().encode('<p><a href="http://slowly/two">on</a></p>' + " ".repeat(2_000));
      return html(new ReadableStream({ start: (stream) => stream.enqueue(begun), pull: () => new Promise(() => undefined) }));
    }),
  );
  const page = await joined("eager");
  await page.locator("#address").fill("http://slowly/");
  await page.locator("#address").press("Enter");
  const frame = page.frameLocator("#view").frameLocator("iframe");
  await frame.getByText("on", { exact: true }).waitFor();
  await page.waitForTimeout(300);
  await frame.getByText("on", { exact: true }).click();
  await frame.getByText("this is /two").waitFor();
  await frame.getByText("a window").click();
  await frame.getByText("this is /window").waitFor();
  for (const each of [page, server]) await each.context().close();
});

test("a member's page is in no window of its own, whatever is clicked with whatever is held", { timeout: 2 * LIMIT }, async () => {
  const host = createServer(() => assert.fail("a member's page has reached the machine's own network")).listen(0, "127.0.0.1");
  await new Promise((resolve) => host.once("listening", resolve));
  const evil = await lab.tab("lure", { options: { network: "home" } });
  await evil.evaluate((port) => {
    const answers = { "/": "<a id='link' href='/top'>open me</a>", "/top": `<p id='top'>here</p><script>if (top === self) location = "http://127.0.0.1:${port}/"</script>` };
    return node.serve({ port: 80 }, (request) => new Response(answers[new URL(request.url).pathname], { headers: { "content-type": "text/html" } }));
  }, host.address().port);
  const page = await joined("lured");
  const windows = [];
  page.context().on("page", (each) => windows.push(each.url()));
  const view = page.frameLocator("#view").frameLocator("iframe");
  let link;
  for (const how of [{ modifiers: ["Control"] }, { modifiers: ["Shift"] }, { button: "middle" }]) {
    await page.locator("#address").fill("http://lure/");
    await page.locator("#browse button").click();
    link = await view.locator("#link").evaluate((each) => each.href);
    await page.waitForTimeout(300);
    await view.locator("#link").click(how);
    await view.locator("#top").waitFor();
  }
  assert.deepEqual(windows, []);
  // What a browser's own menu does with a link.
  const alone = await page.context().newPage();
  await alone.goto(link);
  assert.match(await alone.locator("body").innerText(), /only within the page that has joined/);
  await page.context().close();
  await evil.context().close();
  host.close();
});

test("where a browser lets a page keep nothing, the page joins all the same", { timeout: LIMIT }, async () => {
  const context = await lab.browser.newContext();
  const page = await context.newPage();
  page.setDefaultTimeout(LIMIT);
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(error.stack));
  await page.addInitScript(() => {
    for (const name of ["sessionStorage", "localStorage", "indexedDB"]) {
      Object.defineProperty(globalThis, name, { get: () => { throw new DOMException("blocked", "SecurityError"); } });
    }
  });
  await page.goto(`http://unisockets.localhost:${lab.signalPort}/?network=home&name=forgets`);
  await page.locator("#self-ipv4").filter({ hasText: /^10\.80\./ }).waitFor();
  assert.deepEqual(page.problems, []);
  await context.close();
});

test("who changes their mind while a frame opens gets what they wanted last", { timeout: LIMIT }, async () => {
  const other = await lab.tab("atlas", { options: { network: "home" } });
  await other.evaluate(async () => {
    const html = { "content-type": "text/html" };
    await node.serve({ port: 80 }, (request) => {
      const { pathname } = new URL(request.url);
      if (pathname === "/map.bin") return new Response(new Uint8Array(1000), { headers: { "content-type": "application/octet-stream" } });
      return new Response(`<p>this is ${pathname}</p><a href="/map.bin">a file</a>`, { headers: html });
    });
  });
  const page = await joined("restless");
  // Both are asked for before the origin is there.
  await page.evaluate(async () => {
    for (const path of ["one", "two"]) {
      document.getElementById("address").value = `http://atlas/${path}`;
      document.getElementById("browse").requestSubmit();
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
  });
  const frame = page.frameLocator("#view").frameLocator("iframe");
  await frame.getByText("this is /two").waitFor();
  assert.equal(await page.locator("#problem").isVisible(), false);
  const waiting = page.waitForEvent("download");
  await frame.getByText("a file").click();
  assert.equal((await waiting).suggestedFilename(), "map.bin");
  for (const each of [page, other]) await each.context().close();
});

test("a member's script that never ends stops its own frame only", { timeout: LIMIT }, async () => {
  const evil = await lab.tab("busy", { options: { network: "home" } });
  await evil.evaluate(async () => {
    // Longer than anybody waits below; a browser may wait to the end of it before it closes the frame.
    const page = "<p>about to begin</p><script>setTimeout(() => { for (const end = Date.now() + 25_000; Date.now() < end; ); }, 300)</script>";
    await node.serve({ port: 80 }, () => new Response(page, { headers: { "content-type": "text/html" } }));
  });
  const victim = await joined("patient");
  await victim.locator("#address").fill("busy");
  await victim.locator("#browse button").click();
  await victim.frameLocator("#view").frameLocator("iframe").getByText("about to begin").waitFor();
  // Not in the page: were it stopped, it would wait there until the script has ended.
  await new Promise((resolve) => setTimeout(resolve, 1000));
  // What the page serves is still served, by a page that does not answer at all if the script stops it.
  const said = await evil.evaluate(async () => (await node.fetch("http://patient/", { signal: AbortSignal.timeout(10_000) })).status);
  assert.equal(said, 200);
  for (const each of [victim, evil]) await each.context().close();
});

test("without a secure context the page joins, serves and sends, and only the frame is off", { timeout: LIMIT }, async () => {
  const page = await open("/?network=home&name=plain", { origin: "http://plain.test" });
  await page.locator("#self-ipv4").filter({ hasText: /^10\.80\./ }).waitFor();
  assert.equal(await page.evaluate(() => isSecureContext), false);
  const other = await joined("rich");
  await other.getByRole("button", { name: "Ping plain" }).click();
  await other.locator("#members").getByText(/10\.80\.\d+\.\d+: [\d.]+ ms/).waitFor();
  await page.locator("#address").fill("rich");
  await page.locator("#browse button").click();
  await page.locator("#view-note").filter({ hasText: "plain http from another machine" }).waitFor();
  await page.frameLocator("#view").getByText("Hello from rich").waitFor();
  const choosing = page.waitForEvent("filechooser");
  await page.getByRole("button", { name: "Send a file rich" }).click();
  await (await choosing).setFiles({ name: "plain.bin", mimeType: "application/octet-stream", buffer: Buffer.alloc(100_000, 7) });
  await other.locator("#files").getByText("100.0 kB").waitFor();
  // A reload has the same key again: its name and its address are still its own.
  const address = await page.locator("#self-ipv6").textContent();
  await page.reload();
  await page.locator("#self-ipv6").filter({ hasText: address }).waitFor();
  for (const each of [page, other]) await each.context().close();
});

test("the page fits a phone, light and dark", { timeout: LIMIT }, async () => {
  const shots = process.env.UNISOCKETS_SCREENSHOTS;
  for (const colorScheme of ["light", "dark"]) {
    for (const [form, width, height] of [["phone", 360, 740], ["desktop", 1280, 900]]) {
      const name = `${form}-${colorScheme}`;
      const page = await joined(name, "", { colorScheme, viewport: { width, height } });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);
      assert.equal(wide, false, `${name} scrolls sideways`);
      if (shots) await page.screenshot({ path: `${shots}/${name}.png`, fullPage: true });
      await page.context().close();
    }
  }
});
