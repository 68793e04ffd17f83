// The demo page, as a person uses it.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { LIMIT, Lab } from "./lab.mjs";

let lab;
before(async () => {
  lab = await Lab.open();
}, { timeout: LIMIT });
after(() => lab?.close());

async function open(path, settings = {}) {
  const context = await lab.browser.newContext(settings);
  const page = await context.newPage();
  page.setDefaultTimeout(LIMIT);
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(error.stack));
  page.on("console", (message) => message.type() === "error" && page.problems.push(message.text()));
  await page.goto(`http://localhost:${lab.signalPort}${path}`);
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
  const frame = page.frameLocator("#view");
  await frame.getByText("This tab is not on a network yet.").waitFor();
  await page.locator("#members").getByText("library").waitFor();
  await page.getByRole("button", { name: "Ping library" }).press("Enter");
  await page.locator("#members").getByText(/10\.80\.\d+\.\d+: [\d.]+ ms/).waitFor();
  await page.locator("#links").getByText("direct").waitFor();
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
  for (const page of [from, to]) {
    assert.deepEqual(page.problems, []);
    await page.context().close();
  }
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

test("a member's page in the frame runs no scripts and reaches nothing", { timeout: LIMIT }, async () => {
  const evil = await lab.tab("evil", { options: { network: "home" } });
  await evil.evaluate(() => {
    const page = `<p>shown</p><script>parent.document.title = "taken"; top.location = "about:blank";</script>
      <img src="http://localhost/x" onerror="parent.document.title='taken'">
      <a href="javascript:parent.document.title='taken'" id="bait">bait</a>`;
    void node.serve({ port: 80 }, () => new Response(page, { headers: { "content-type": "text/html" } }));
  });
  const page = await joined("victim");
  await page.locator("#address").fill("evil");
  await page.locator("#browse button").click();
  const frame = page.frameLocator("#view");
  await frame.getByText("shown").waitFor();
  await frame.locator("#bait").click();
  assert.equal(await page.title(), "unisockets: this tab is a host");
  assert.equal(await page.locator("#joined").isVisible(), true);
  await page.context().close();
  await evil.context().close();
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
