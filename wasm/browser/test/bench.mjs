// Measures a tab against raw data channels of the same browser, in turn; prints one JSON object. 'bench/run' calls it.

import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";

import { Lab } from "./lab.mjs";

const RAW = process.env.UNISOCKETS_RAW_CHANNEL;
const ROUNDS = Number(process.env.UNISOCKETS_ROUNDS ?? 5);
const BYTES = 64 * 1024 * 1024;
/** Message sizes of the raw channel; the best of them counts. */
const SIZES = [1_160, 16_384, 65_535];
const ECHOES = 500;
const PACKAGE = fileURLToPath(new URL("..", import.meta.url));
const MODULE = `${PACKAGE}/core/core_bg.wasm`;

if (!RAW) throw new Error("UNISOCKETS_RAW_CHANNEL names the example 'raw_channel' of unisockets-link");

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
/** The mean of the middle half: a page's clock has steps of 100 us, and a median would be one of them. */
const midmean = (values) => {
  const middle = values.toSorted((a, b) => a - b).slice(values.length >> 2, -(values.length >> 2));
  return middle.reduce((sum, value) => sum + value, 0) / middle.length;
};

/** Opens a raw channel between a page and a process; the process's first line is its description. */
async function raw(lab, page, role, what, size, count) {
  const child = lab.spawn(RAW, [role, what, String(size), String(count), "0"]);
  const offer = role === "offer" ? await child.line(/^\{/) : undefined;
  const description = await page.evaluate(async (offer) => {
    globalThis.raw?.close();
    globalThis.raw = new RTCPeerConnection();
    globalThis.channel = raw.createDataChannel("raw", { negotiated: true, id: 0 });
    channel.binaryType = "arraybuffer";
    globalThis.messages = [];
    globalThis.heard = undefined;
    channel.onmessage = ({ data }) => (heard ? heard(data) : messages.push(data));
    if (offer) await raw.setRemoteDescription(JSON.parse(offer));
    await raw.setLocalDescription();
    while (raw.iceGatheringState !== "complete") await new Promise((resolve) => (raw.onicegatheringstatechange = resolve));
    return JSON.stringify(raw.localDescription);
  }, offer);
  child.process.stdin.write(`${description}\n`);
  if (!offer) {
    const answer = await child.line(/^\{/);
    await page.evaluate((answer) => raw.setRemoteDescription(JSON.parse(answer)), answer);
  }
  await page.evaluate(async () => channel.readyState === "open" || new Promise((resolve) => (channel.onopen = resolve)));
  return child;
}

async function rawFromTab(lab, page, size) {
  const child = await raw(lab, page, "answer", "bytes", size, BYTES);
  const rate = await page.evaluate(
    async ([size, bytes]) => {
      const message = new Uint8Array(size).fill(0x5a);
      channel.bufferedAmountLowThreshold = 256 * 1024;
      const done = new Promise((resolve) => (heard = resolve));
      const began = performance.now();
      for (let sent = 0; sent < bytes; sent += size) {
        if (channel.bufferedAmount > 1024 * 1024) await new Promise((resolve) => (channel.onbufferedamountlow = resolve));
        channel.send(message);
      }
      await done;
      return bytes / 1000 / (performance.now() - began);
    },
    [size, BYTES],
  );
  await child.kill();
  return rate;
}

async function rawToTab(lab, page, size) {
  const child = await raw(lab, page, "offer", "bytes", size, BYTES);
  await page.evaluate(
    async ([size, bytes]) => {
      let left = Math.ceil(bytes / size) * size - messages.reduce((sum, data) => sum + data.byteLength, 0);
      await new Promise((resolve) => {
        heard = (data) => (left -= data.byteLength) <= 0 && resolve();
        if (left <= 0) resolve();
      });
      channel.send("done");
    },
    [size, BYTES],
  );
  const line = await child.line(/^[\d.]+$/);
  await child.kill();
  return Number(line);
}

async function rawEcho(lab, page) {
  const child = await raw(lab, page, "answer", "echo", 64, ECHOES);
  const micros = await page.evaluate(async (count) => {
    const message = new Uint8Array(64);
    const times = [];
    for (let turn = 0; turn < count; turn += 1) {
      const answered = new Promise((resolve) => (heard = resolve));
      const began = performance.now();
      channel.send(message);
      // A first message may be lost on an end that has not opened.
      const again = turn === 0 ? setInterval(() => channel.send(new Uint8Array(1)), 100) : 0;
      await answered;
      clearInterval(again);
      times.push((performance.now() - began) * 1000);
    }
    return times;
  }, ECHOES);
  await child.kill();
  return midmean(micros);
}

/** Asks 'unisockets bench serve' for one of its tests. */
function ask(page, request, work) {
  return page.evaluate(
    async ([request, work]) => {
      const socket = await node.connect("target", 7070);
      await socket.setNoDelay();
      await socket.write(`${JSON.stringify(request)}\n`);
      try {
        return await (0, eval)(`(${work})`)(socket, request);
      } finally {
        socket.close();
      }
    },
    [request, String(work)],
  );
}

/** One stream from the tab to a native program, until that says that it has all. */
function fromTab(page) {
  return ask(page, { test: "sink", bytes: BYTES }, async (socket, { bytes }) => {
    const part = new Uint8Array(256 * 1024).fill(0x5a);
    const began = performance.now();
    for (let sent = 0; sent < bytes; sent += part.length) await socket.write(part);
    await socket.read();
    return bytes / 1000 / (performance.now() - began);
  });
}

/** One stream from a native program to the tab. */
function toTab(page) {
  return ask(page, { test: "source", bytes: BYTES }, async (socket, { bytes }) => {
    const began = performance.now();
    for (let left = bytes; left > 0; ) left -= (await socket.read()).length;
    return bytes / 1000 / (performance.now() - began);
  });
}

async function echo(page) {
  const times = await ask(page, { test: "echo", count: ECHOES }, async (socket, { count }) => {
    const message = new Uint8Array(64);
    const times = [];
    for (let turn = 0; turn < count; turn += 1) {
      const began = performance.now();
      await socket.write(message);
      for (let left = 64; left > 0; ) left -= (await socket.read()).length;
      times.push((performance.now() - began) * 1000);
    }
    return times;
  });
  return midmean(times);
}

/** From the beginning of loading the page to the first byte of a native peer, in seconds. */
async function firstByte(lab) {
  const context = await lab.browser.newContext();
  const page = await context.newPage();
  await page.goto("about:blank");
  const began = performance.now();
  await page.goto(lab.files);
  await page.evaluate(async (signal) => {
    const { join } = await import("/dist/index.js");
    const node = await join({ signal, key: "ephemeral" });
    await (await node.fetch("http://files/")).body.getReader().read();
  }, lab.signal);
  const took = (performance.now() - began) / 1000;
  await context.close();
  return took;
}

/** The longest task of the page's own thread while a stream runs, in milliseconds. */
async function longestTask(page) {
  await page.evaluate(() => {
    globalThis.longest = 0;
    let last = performance.now();
    const { port1, port2 } = new MessageChannel();
    globalThis.ticking = true;
    // A thread that is free sees each of these after the timer, which takes 4 ms at least when it calls itself (HTML,
    // timers); what is more than that is what a task in between took.
    port1.onmessage = () => {
      const now = performance.now();
      longest = Math.max(longest, now - last - 4);
      last = now;
      if (ticking) setTimeout(() => port2.postMessage(0), 4);
    };
    port2.postMessage(0);
    globalThis.observed = 0;
    globalThis.observer = new PerformanceObserver((list) => list.getEntries().forEach(({ duration }) => (observed = Math.max(observed, duration))));
    observer.observe({ type: "longtask" });
  });
  await toTab(page);
  await fromTab(page);
  return page.evaluate(() => ((ticking = false), observer.disconnect(), Math.max(longest, observed)));
}

const lab = await Lab.open();
try {
  const served = lab.run("serve", "80", PACKAGE, "--name", "files");
  await served.line(/files/);
  const target = lab.run("bench", "serve", "--name", "target");
  await target.line(/./);
  const page = await lab.tab("tab");
  const plain = await lab.browser.newPage();
  await plain.goto(lab.files);
  // Links are made before anything is measured.
  await echo(page);
  await fromTab(page);
  await toTab(page);
  const rounds = { from: [], to: [], fromRaw: [], toRaw: [], echo: [], rawEcho: [], first: [], longest: [] };
  for (let round = 0; round < ROUNDS; round += 1) {
    const best = async (measure) => {
      let rate = 0;
      for (const size of SIZES) rate = Math.max(rate, await measure(lab, plain, size));
      return rate;
    };
    rounds.from.push(await fromTab(page));
    rounds.fromRaw.push(await best(rawFromTab));
    rounds.to.push(await toTab(page));
    rounds.toRaw.push(await best(rawToTab));
    rounds.echo.push(await echo(page));
    rounds.rawEcho.push(await rawEcho(lab, plain));
    rounds.first.push(await firstByte(lab));
    rounds.longest.push(await longestTask(page));
  }
  const ratio = (ours, theirs) => median(ours.map((value, at) => value / theirs[at]));
  const result = {
    tab_to_native_vs_raw: ratio(rounds.from, rounds.fromRaw),
    native_to_tab_vs_raw: ratio(rounds.to, rounds.toRaw),
    tab_echo_extra_us: median(rounds.echo.map((value, at) => value - rounds.rawEcho[at])),
    wasm_gzip_kib: execFileSync("gzip", ["-9", "-c", MODULE], { maxBuffer: 2 ** 24 }).length / 1024,
    tab_join_first_byte_s: median(rounds.first),
    tab_main_thread_block_ms: median(rounds.longest),
    rounds,
  };
  console.log(JSON.stringify(result));
} finally {
  await lab.close();
}
process.exit(0);
