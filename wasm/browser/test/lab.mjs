// What the browser's tests share: a browser, pages that hold the package, and the tool as processes.

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createReadStream, existsSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const PACKAGE = fileURLToPath(new URL("..", import.meta.url));
const TARGET = process.env.CARGO_TARGET_DIR ?? join(PACKAGE, "../../target");
const TOOL = process.env.UNISOCKETS_TOOL ?? join(TARGET, "debug/unisockets");
const CHROMIUM = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm", ".css": "text/css" };
/** Where the stacks of tabs run, if not where they do by themselves. */
const STACK = process.env.UNISOCKETS_STACK;
/** How long anything may take, in milliseconds: tells a hang from an answer. */
export const LIMIT = 60_000;

/** Everything that a test started, to be ended with it. */
export class Lab {
  #children = new Set();
  #ends = [];
  #raw;
  /** Keys and pins of the tool's nodes. */
  #data = mkdtempSync(join(tmpdir(), "unisockets-browser-"));

  /** Starts a signaling server and a browser. */
  static async open(options = {}) {
    const lab = new Lab();
    try {
      if (!existsSync(TOOL)) throw new Error(`${TOOL} is missing: build it with 'cargo build'`);
      if (!CHROMIUM) throw new Error("Chromium is missing: install the package 'chromium'");
      lab.signalPort = await freePort();
      await lab.startSignaling();
      lab.files = await lab.#serveFiles();
      // Tabs in the background are treated as they are where people have them.
      const ignoreDefaultArgs = ["--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows"];
      lab.browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"], ignoreDefaultArgs, ...options });
      lab.#ends.push(() => lab.browser.close());
      return lab;
    } catch (error) {
      await lab.close();
      throw error;
    }
  }

  get signal() {
    return `ws://127.0.0.1:${this.signalPort}`;
  }

  async startSignaling() {
    const leases = join(this.#data, "leases");
    const names = ["127.0.0.1", "localhost", "unisockets.localhost", "plain.test"].flatMap((name) => ["--host", name]);
    const listen = ["--listen", `127.0.0.1:${this.signalPort}`, "--data", leases];
    this.signaling = this.run("signal", "serve", ...listen, ...names, "--page", join(PACKAGE, "site"));
    await this.signaling.line(/^ws:/);
  }

  async #serveFiles() {
    const server = createServer((request, response) => {
      const path = normalize(new URL(request.url, "http://x").pathname);
      const file = join(PACKAGE, path);
      if (path === "/") return response.writeHead(200, { "content-type": "text/html" }).end("<!doctype html><title>a tab</title>");
      if (path.includes("..") || !existsSync(file)) return response.writeHead(404).end();
      response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "application/octet-stream" });
      createReadStream(file).pipe(response);
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    this.#ends.push(() => new Promise((resolve) => (server.closeAllConnections(), server.close(resolve))));
    return `http://localhost:${server.address().port}/`;
  }

  /** Opens a tab, in a context of its own unless one is given; `node` is there once it has joined. */
  async tab(name, { context, options = {} } = {}) {
    const own = context ?? (await this.browser.newContext());
    const page = await own.newPage();
    page.setDefaultTimeout(LIMIT);
    page.on("pageerror", (error) => console.error(`${name}: ${error.stack}`));
    await page.goto(this.files);
    await this.join(page, name, options);
    return page;
  }

  /** Joins the network in a page. */
  async join(page, name, options = {}) {
    const settings = { signal: this.signal, name, ...(STACK ? { stack: STACK } : {}), ...options };
    return page.evaluate(async (settings) => {
      globalThis.unisockets ??= await import("/dist/index.js");
      globalThis.node = await unisockets.join(settings);
      const { runs } = await node.status();
      if (runs !== (settings.stack ?? "worker")) throw new Error(`the stack runs in the ${runs}`);
      return { key: node.key, name: node.name, ipv4: node.ipv4, ipv6: node.ipv6 };
    }, settings);
  }

  /** Opens a tab behind another one: hidden, and with slow timers, as a browser has them. */
  async hiddenTab() {
    // Playwright keeps its own pages visible and awake; it does not know this one.
    this.#raw ??= await this.browser.newBrowserCDPSession();
    const { browserContextId } = await this.#raw.send("Target.createBrowserContext");
    const open = (url) => this.#raw.send("Target.createTarget", { url, browserContextId });
    const { targetId } = await open(this.files);
    const { sessionId } = await this.#raw.send("Target.attachToTarget", { targetId, flatten: false });
    const front = await open("about:blank");
    await this.#raw.send("Target.activateTarget", front);
    const tab = new RawTab(this.#raw, sessionId);
    // A target is there before its page is, and has an empty one until then.
    const until = Date.now() + LIMIT;
    while (!(await tab.evaluate((url) => location.href === url && document.readyState === "complete", this.files).catch(() => false))) {
      if (Date.now() > until) throw new Error(`a hidden tab never came to ${this.files}`);
    }
    return tab;
  }

  /** Runs the tool. */
  run(...words) {
    return this.spawn(TOOL, words);
  }

  /** Runs any program. */
  spawn(program, words, stdin = "pipe", stdout = "pipe") {
    const child = new Program(program, words, { UNISOCKETS_SIGNAL: this.signal, XDG_DATA_HOME: this.#data }, [stdin, stdout, "pipe"]);
    this.#children.add(child);
    return child;
  }

  /** Ends all that was started. */
  async close() {
    for (const end of this.#ends.reverse()) await end().catch(() => undefined);
    for (const child of this.#children) await child.kill();
    rmSync(this.#data, { recursive: true, force: true });
  }
}

/** A tab that is spoken to in the browser's own protocol. */
class RawTab {
  #browser;
  #sessionId;
  #last = 0;
  #waiting = new Map();

  constructor(browser, sessionId) {
    this.#browser = browser;
    this.#sessionId = sessionId;
    browser.on("Target.receivedMessageFromTarget", ({ sessionId, message }) => {
      if (sessionId !== this.#sessionId) return;
      const { id, result, error } = JSON.parse(message);
      this.#waiting.get(id)?.(error ? { exceptionDetails: { text: error.message } } : result);
      this.#waiting.delete(id);
    });
  }

  /** Evaluates a function with an argument that is JSON; returns what is JSON. */
  async evaluate(work, argument) {
    const id = (this.#last += 1);
    const expression = `(${work})(${JSON.stringify(argument)})`;
    const params = { expression, awaitPromise: true, returnByValue: true };
    const answered = new Promise((resolve) => this.#waiting.set(id, resolve));
    const message = JSON.stringify({ id, method: "Runtime.evaluate", params });
    await this.#browser.send("Target.sendMessageToTarget", { sessionId: this.#sessionId, message });
    const { result, exceptionDetails } = await answered;
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }
}

/** A program as a process. */
class Program {
  constructor(program, words, settings, stdio) {
    const env = { ...process.env, ...settings };
    this.process = spawn(program, words, { env, stdio });
    this.errors = "";
    this.lines = [];
    this.chunks = [];
    this.ended = once(this.process, "close").then(([code]) => code);
    if (this.process.stdout) {
      this.process.stdout.on("data", (chunk) => this.chunks.push(chunk));
      createInterface({ input: this.process.stdout }).on("line", (line) => this.#note(line));
    }
    createInterface({ input: this.process.stderr }).on("line", (line) => {
      this.errors += `${line}\n`;
      this.#note(line);
    });
    this.waiting = [];
  }

  #note(line) {
    this.lines.push(line);
    this.waiting = this.waiting.filter(({ pattern, resolve }) => !pattern.test(line) || resolve(line));
  }

  /** Waits for a line of output. */
  line(pattern) {
    const known = this.lines.find((line) => pattern.test(line));
    if (known !== undefined) return known;
    return new Promise((resolve, reject) => {
      this.waiting.push({ pattern, resolve });
      this.ended.then((code) => reject(new Error(`it ended with ${code} before it said ${pattern}: ${this.errors}`)));
      setTimeout(() => reject(new Error(`it never said ${pattern}: ${this.lines.join("\n")}`)), LIMIT).unref();
    });
  }

  /** Waits for the end; returns what it wrote. */
  async output() {
    const code = await this.ended;
    if (code !== 0) throw new Error(`it ended with ${code}: ${this.errors}`);
    return Buffer.concat(this.chunks);
  }

  async kill(signal = "SIGKILL") {
    this.process.kill(signal);
    await this.ended;
  }
}

/** Puts helpers into a page. */
export async function equip(page) {
  await page.evaluate(() => {
    globalThis.hex = async (bytes) =>
      [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    globalThis.pattern = (len) => {
      const words = new Uint32Array(len / 4);
      for (let at = 0, word = 1; at < words.length; at += 1) words[at] = word = (Math.imul(word, 1664525) + 1013904223) >>> 0;
      return new Uint8Array(words.buffer);
    };
    globalThis.readAll = async (socket, most = Infinity) => {
      const parts = [];
      let len = 0;
      for (let part; len < most && (part = await socket.read()); len += part.length) parts.push(part);
      return new Uint8Array(await new Blob(parts).arrayBuffer());
    };
  });
}

export function sha256(bytes) {
  return createHash("sha256").update(bytes).digest("hex");
}

/** Returns a port that is free now. */
export async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}
