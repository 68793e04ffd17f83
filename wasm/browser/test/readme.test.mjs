// The examples of README.md, one after the other, in a tab; and the package as npm packs it, in Node.js.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { LIMIT, Lab } from "./lab.mjs";

const PACKAGE = fileURLToPath(new URL("..", import.meta.url));
const WHERE = { unisockets: "/dist/index.js", "unisockets/net": "/dist/net.js", "unisockets/dgram": "/dist/dgram.js", "unisockets/direct": "/dist/direct.js" };
const examples = [...readFileSync(new URL("../README.md", import.meta.url), "utf8").matchAll(/```js\n(.*?)```/gs)].map(([, code]) => code);

let lab;
before(async () => {
  lab = await Lab.open();
}, { timeout: LIMIT });
after(() => lab?.close());

test("every example of the README runs", { timeout: LIMIT }, async () => {
  assert.equal(examples.length, 7);
  const alpha = await lab.tab("alpha");
  await alpha.evaluate(async () => {
    await node.serve({ port: 80 }, () => new Response("from alpha"));
    const echo = await node.listen(7);
    void (async () => {
      for await (const socket of echo) void socket.readable.pipeTo(socket.writable).finally(() => socket.close());
    })();
    const udp = await node.bind(9);
    void (async () => {
      for await (const { data, remote } of udp) await udp.send(data, remote.address.includes(":") ? `[${remote.address}]:${remote.port}` : `${remote.address}:${remote.port}`);
    })();
  });
  const page = await (await lab.browser.newContext()).newPage();
  const said = [];
  const problems = [];
  page.on("console", (message) => said.push(message.text()));
  page.on("pageerror", (error) => problems.push(error.stack));
  await page.goto(lab.files);
  for (const [at, example] of examples.entries()) {
    const code = example
      .replaceAll("ws://127.0.0.1:7080", lab.signal)
      .replace(/^import \{ (.*?) \} from "(.*?)";$/gm, (_, names, from) => `const { ${names} } = await import("${WHERE[from]}");`)
      // What the first example makes, the others use.
      .replace("const node =", "globalThis.node =");
    await page.evaluate(async (code) => new (Object.getPrototypeOf(async () => undefined).constructor)(code)(), code).catch((error) => {
      throw new Error(`example ${at + 1}: ${error.message}`);
    });
  }
  const heard = (pattern) => said.some((line) => pattern.test(line));
  const until = performance.now() + LIMIT / 2;
  while (said.filter((line) => /^5/.test(line)).length < 4 && performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 50));
  for (const pattern of [/^shop 10\.80\./, /^200 from alpha$/, /^hello$/, /^5 10\.80\.\d+\.\d+ 9$/, /ms$/, /^worker [12] /, /^alpha 10\.80\.\d+\.\d+ true$/, /ICMP echo request/]) {
    assert.ok(heard(pattern), `${pattern} in\n${said.join("\n")}`);
  }
  assert.deepEqual(problems, []);
  const shop = await alpha.evaluate(async () => (await node.fetch("http://shop/apples")).text());
  assert.equal(shop, "you asked for /apples\n");
  for (const each of [page, alpha]) await each.context().close();
});

test("the package that npm packs runs in Node.js", { timeout: 2 * LIMIT }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "unisockets-npm-"));
  try {
    const npm = (cwd, ...words) => execFileSync("npm", words, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
    const [{ filename }] = JSON.parse(npm(PACKAGE, "pack", "--json", "--silent", "--pack-destination", folder));
    writeFileSync(join(folder, "package.json"), '{ "type": "module" }');
    npm(folder, "install", "--silent", "--offline", "--no-audit", `./${filename}`);
    // Types of the package's own only: whoever has those of Node.js keeps them.
    const types = join(folder, "node_modules/unisockets/dist");
    const declared = readdirSync(types).filter((name) => name.endsWith(".d.ts")).map((name) => readFileSync(join(types, name), "utf8"));
    assert.ok(declared.length > 10 && declared.every((text) => !/declare (module|global)|<reference/.test(text)));
    const uses = `import { EventEmitter } from "events";\nimport { Socket, net } from "unisockets/net";\nimport { dgram } from "unisockets/dgram";
const own: { setMaxListeners(n: number): unknown } = new EventEmitter();\nown.setMaxListeners(3);
const sockets = (node: Parameters<typeof net>[0]): Socket => (dgram(node).createSocket("udp4").on("message", () => undefined), net(node).connect(7, "x").on("data", () => undefined).end());
void sockets;\n`;
    writeFileSync(join(folder, "uses.ts"), uses);
    writeFileSync(join(folder, "node.d.ts"), 'declare module "events" {\n  class EventEmitter { setMaxListeners(n: number): this }\n  namespace EventEmitter { export { EventEmitter } }\n  export = EventEmitter;\n}\n');
    const strict = ["--noEmit", "--strict", "--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler", "--lib", "es2023,dom,dom.iterable,esnext.disposable"];
    execFileSync(join(PACKAGE, "node_modules/.bin/tsc"), [...strict, "node.d.ts", "uses.ts"], { cwd: folder, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });
    writeFileSync(
      join(folder, "main.js"),
      `import { join } from "unisockets";
import { net } from "unisockets/net";
const failed = await join({ signal: process.argv[2] }).then(() => "joined", (error) => error.message);
console.log(failed);
console.log(typeof net);
`,
    );
    // What Node.js lacks is said, with the command that brings it.
    const program = lab.spawn(process.execPath, [join(folder, "main.js"), lab.signal]);
    const text = (await program.output()).toString();
    assert.match(text, /^Node\.js has no WebRTC of its own: 'npm install node-datachannel', or '@roamhq\/wrtc'\nfunction\n$/);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
