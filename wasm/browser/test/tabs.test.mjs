// Tabs and native programs on one network: what each asks of the other, over real WebRTC.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { LIMIT, Lab, equip, sha256 } from "./lab.mjs";

/** Bytes of a long transfer. */
const LONG = 64 * 1024 * 1024;
/** How long a peer may take to learn that a tab is gone, in milliseconds. */
const GONE = 15_000;

let lab;
before(async () => {
  lab = await Lab.open();
}, { timeout: LIMIT });
after(() => lab?.close());

/** Bytes that tell where they belong, the same in a page. */
function pattern(len) {
  const words = new Uint32Array(len / 4);
  for (let at = 0, word = 1; at < words.length; at += 1) words[at] = word = (Math.imul(word, 1664525) + 1013904223) >>> 0;
  return Buffer.from(words.buffer);
}

async function tab(name, options) {
  const page = await lab.tab(name, options);
  await equip(page);
  return page;
}

test("a native program asks a server in a tab", { timeout: LIMIT }, async () => {
  const page = await tab("shop");
  await page.evaluate(async () => {
    await node.serve({ port: 80 }, (request, { remote }) => new Response(`${new URL(request.url).pathname} for ${remote.address}`));
  });
  const nc = lab.run("nc", "--name", "asker", "shop", "80");
  nc.process.stdin.end("GET /apples HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
  const answer = (await nc.output()).toString();
  assert.match(answer, /^HTTP\/1\.1 200 /);
  assert.match(answer, /\/apples for 10\.80\./);
  const curl = lab.run("run", "--name", "curler", "--", "curl", "-s", "http://shop/pears");
  assert.match((await curl.output()).toString(), /^\/pears for (10\.80\.|fd75:6e69:)/);
  // UDP, from a program to the tab and back, and from the tab to a program.
  await page.evaluate(async () => {
    const udp = await node.bind(9);
    void (async () => {
      for await (const { data, remote } of udp) {
        const host = remote.address.includes(":") ? `[${remote.address}]` : remote.address;
        await udp.send(data, `${host}:${remote.port}`);
      }
    })();
  });
  const asking = lab.run("nc", "-u", "--name", "udp-asker", "shop", "9");
  asking.process.stdin.end("over UDP");
  assert.equal((await asking.output()).toString(), "over UDP");
  const hearing = lab.run("nc", "-u", "-l", "--name", "udp-hearer", "9");
  await hearing.line(/udp-hearer/);
  await page.evaluate(async () => {
    const { ipv4, ipv6 } = await node.resolve("udp-hearer");
    const udp = await node.bind();
    for (const target of [`${ipv4}:9`, `[${ipv6}]:9`]) await udp.send(`to ${target}\n`, target);
  });
  for (const family of [/^to 10\.80\./, /^to \[fd/]) await hearing.line(family);
  await hearing.kill();
  await page.context().close();
});

test("a tab asks a native server, by name, IPv4 and IPv6, and is told of what is wrong", { timeout: LIMIT }, async () => {
  const server = lab.run("serve", "--name", "files", "80", ".");
  await server.line(/files/);
  const page = await tab("reader");
  const [named, v4, v6, missing, refused, unknown, outside] = await page.evaluate(async () => {
    const code = (promise) => promise.then(() => "none", (error) => error.code ?? error.name);
    const files = await node.resolve("files");
    const get = async (url) => (await node.fetch(url)).status;
    return [
      await get("http://files/"),
      await get(`http://${files.ipv4}/`),
      await get(`http://[${files.ipv6}]/`),
      await get("http://files/no/such/thing"),
      await code(node.connect("files", 81)),
      await code(node.connect("nobody", 80)),
      await code(node.connect("192.0.2.1", 80)),
    ];
  });
  assert.deepEqual([named, v4, v6, missing], [200, 200, 200, 404]);
  assert.deepEqual([refused, unknown, outside], ["ECONNREFUSED", "ENOTFOUND", "ENETUNREACH"]);
  await page.context().close();
  await server.kill();
});

test("64 MiB from a native program to a tab, and back, right to the byte", { timeout: 2 * LIMIT }, async () => {
  const page = await tab("mirror");
  await page.evaluate(async () => {
    const listener = await node.listen(7);
    void (async () => {
      for await (const socket of listener) {
        const data = await readAll(socket);
        globalThis.got = await hex(data);
        await socket.write(data);
        socket.close();
      }
    })();
  });
  const data = pattern(LONG);
  for (const target of ["mirror", await page.evaluate(() => node.ipv6)]) {
    const nc = lab.run("nc", "--name", "sender", target, "7");
    const began = performance.now();
    nc.process.stdin.end(data);
    const back = await nc.output();
    console.log(`    128 MiB to ${target} and back in ${((performance.now() - began) / 1000).toFixed(1)} s`);
    assert.equal(await page.evaluate(() => globalThis.got), sha256(data));
    assert.equal(sha256(back), sha256(data));
  }
  await page.context().close();
});

for (const kind of ["contexts", "one context"]) {
  test(`two tabs of ${kind} are two members: TCP, UDP, half-close, reset, refusal`, { timeout: 2 * LIMIT }, async () => {
    const context = kind === "contexts" ? undefined : await lab.browser.newContext();
    const left = `left-of-${kind.replace(" ", "-")}`;
    const a = await tab(left, { context });
    const b = await tab(`right-of-${kind.replace(" ", "-")}`, { context });
    await a.evaluate(async () => {
      const echo = await node.listen(7);
      void (async () => {
        for await (const socket of echo) void socket.readable.pipeTo(socket.writable).finally(() => socket.close());
      })();
      const resetting = await node.listen(8);
      void (async () => {
        for await (const socket of resetting) void socket.read().then(() => socket.reset());
      })();
      const udp = await node.bind(9);
      void (async () => {
        for await (const { data, remote } of udp) {
          const host = remote.address.includes(":") ? `[${remote.address}]` : remote.address;
          await udp.send(data, `${host}:${remote.port}`);
        }
      })();
    });
    const found = await b.evaluate(async ([name, long, six]) => {
      const { ipv6 } = await node.resolve(name);
      const socket = await node.connect(six ? ipv6 : name, 7);
      const family = socket.remote.address.includes(":") ? 6 : 4;
      const sent = pattern(long);
      const writing = socket.write(sent).then(() => socket.shutdown());
      const received = await readAll(socket);
      await writing;
      socket.close();
      const doomed = await node.connect(name, 8);
      await doomed.write("x");
      const reset = await doomed.read().then((data) => data ?? "end", (error) => error.code);
      const refused = await node.connect(name, 99).then(() => "none", (error) => error.code);
      const left = await node.resolve(name);
      const udp = await node.bind();
      const echoes = [];
      for (const target of [`${left.ipv4}:9`, `[${left.ipv6}]:9`]) {
        await udp.send("ping", target);
        echoes.push(new TextDecoder().decode((await udp.receive(AbortSignal.timeout(10000)))?.data));
      }
      udp.close();
      const echo = await node.ping(name);
      return { same: (await hex(sent)) === (await hex(received)), family, reset, refused, echoes, hops: echo.hopLimit };
    }, [left, LONG, kind === "one context"]);
    assert.deepEqual(found, { same: true, family: kind === "one context" ? 6 : 4, reset: "ECONNRESET", refused: "ECONNREFUSED", echoes: ["ping", "ping"], hops: 64 });
    await a.context().close();
    await b.context().close();
  });
}

test("a reload keeps the tab's address, and its server can be reached again", { timeout: LIMIT }, async () => {
  const page = await tab("phoenix");
  const neighbour = await tab("neighbour");
  const serve = () => page.evaluate(async () => void (await node.serve({ port: 80 }, () => new Response("risen"))));
  const ask = () => neighbour.evaluate(async () => (await node.fetch("http://phoenix/")).text());
  await serve();
  assert.equal(await ask(), "risen");
  const before = await page.evaluate(() => [node.key, node.ipv4, node.ipv6]);
  await page.reload();
  await lab.join(page, "phoenix");
  await serve();
  assert.deepEqual(await page.evaluate(() => [node.key, node.ipv4, node.ipv6]), before);
  assert.equal(await ask(), "risen");
  await page.context().close();
  await neighbour.context().close();
});

test("each node of a page has its own key, and has it again after a reload", { timeout: LIMIT }, async () => {
  const page = await tab("twin-one");
  const keys = async () => {
    const first = await page.evaluate(() => node.key);
    const { key } = await lab.join(page, "twin-two");
    return [first, key];
  };
  const before = await keys();
  assert.notEqual(before[0], before[1]);
  await page.reload();
  await lab.join(page, "twin-one");
  assert.deepEqual(await keys(), before);
  await page.context().close();
});

const ENDS = {
  closed: (page) => page.context().close(),
  // Its renderer dies without another word, like one that runs out of memory.
  crashed: async (page) => void (await page.context().newCDPSession(page)).send("Page.crash").catch(() => undefined),
};
for (const [how, end] of Object.entries(ENDS)) {
  test(`the peers of a tab that is ${how} learn it`, { timeout: LIMIT }, async () => {
    const page = await tab(`${how}-tab`);
    const neighbour = await tab(`mourner-of-${how}`);
    await page.evaluate(async () => {
      globalThis.listener = await node.listen(7);
      void listener.accept().then((socket) => (globalThis.socket = socket));
    });
    await neighbour.evaluate(async (name) => (globalThis.socket = await node.connect(name, 7)), `${how}-tab`);
    await page.evaluate(async () => {
      const greeter = await node.listen(8);
      void (async () => {
        for await (const socket of greeter) await socket.write("welcome\n");
      })();
    });
    const native = lab.run("nc", "--name", `native-mourner-of-${how}`, `${how}-tab`, "8");
    await native.line(/^welcome/);
    const waiting = neighbour.evaluate(() => socket.read().then((data) => data ?? "end", (error) => error.code));
    const began = performance.now();
    await end(page);
    const seen = await waiting;
    assert.ok(["ECONNRESET", "EHOSTUNREACH"].includes(seen), String(seen));
    assert.notEqual(await native.ended, 0, native.errors);
    // ECONNRESET, or EHOSTUNREACH, as the tool says it.
    assert.match(String(native.errors), /the other side ended the connection|no such member is there/);
    assert.ok(performance.now() - began < GONE, `${performance.now() - began} ms`);
    await page.context().close();
    await neighbour.context().close();
  });
}

test("a native peer that is killed and starts again is reached again", { timeout: LIMIT }, async () => {
  const page = await tab("loyal");
  const start = async () => {
    const server = lab.run("serve", "--name", "lazarus", "80", ".");
    await server.line(/lazarus/);
    return server;
  };
  const first = await start();
  assert.equal(await page.evaluate(async () => (await node.fetch("http://lazarus/")).status), 200);
  await first.kill();
  const second = await start();
  const [status, took] = await page.evaluate(async () => {
    const began = performance.now();
    return [(await node.fetch("http://lazarus/")).status, performance.now() - began];
  });
  assert.equal(status, 200);
  assert.ok(took < GONE, `${took} ms`);
  await second.kill();
  await page.context().close();
});

test("signaling is killed and restarted: connections go on, and new ones can be made", { timeout: 2 * LIMIT }, async () => {
  const page = await tab("steady");
  const neighbour = await tab("friend");
  await page.evaluate(async () => {
    const listener = await node.listen(7);
    void (async () => {
      for await (const socket of listener) void socket.readable.pipeTo(socket.writable);
    })();
    globalThis.events = [];
    for (const kind of ["disconnected", "joined"]) node.addEventListener(kind, () => events.push(kind));
  });
  await neighbour.evaluate(async () => (globalThis.socket = await node.connect("steady", 7)));
  const echo = () =>
    neighbour.evaluate(async () => {
      await socket.write("still there?");
      return new TextDecoder().decode(await socket.read());
    });
  assert.equal(await echo(), "still there?");
  // A transfer runs through all of it.
  await neighbour.evaluate(async () => {
    const running = await node.connect("steady", 7);
    globalThis.over = false;
    const part = pattern(256 * 1024);
    let sent = 0;
    void (async () => {
      for (; !over; sent += part.length) await running.write(part);
      await running.shutdown();
    })();
    globalThis.transfer = (async () => {
      const received = await readAll(running);
      const right = received.every((byte, at) => byte === part[at % part.length]);
      return right && received.length === sent && sent > 0;
    })();
  });
  await lab.signaling.kill();
  await page.waitForFunction(() => events.includes("disconnected"));
  assert.equal(await echo(), "still there?");
  const began = performance.now();
  const unanswered = await neighbour.evaluate(() => {
    const code = (promise) => promise.then(() => "none", (error) => error.code);
    return Promise.all([code(node.connect("somebody", 80)), code(node.members()), code(node.fetch("http://somebody/"))]);
  });
  assert.deepEqual(unanswered, ["EAI_AGAIN", "EAI_AGAIN", "EAI_AGAIN"]);
  assert.ok(performance.now() - began < 2 * GONE, `${performance.now() - began} ms`);
  await lab.startSignaling();
  await page.waitForFunction(() => events.includes("joined"));
  assert.equal(await echo(), "still there?");
  assert.equal(await neighbour.evaluate(() => ((globalThis.over = true), transfer)), true);
  const late = await tab("late");
  assert.equal(await late.evaluate(async () => (await node.connect("steady", 7)).remote.port), 7);
  for (const each of [page, neighbour, late]) await each.context().close();
});

test("fifty connections at once, and one reader that takes nothing, leave each other alone", { timeout: 2 * LIMIT }, async () => {
  const page = await tab("hub");
  const neighbour = await tab("crowd");
  await page.evaluate(async () => {
    const echo = await node.listen(7, { backlog: 64 });
    void (async () => {
      for await (const socket of echo) void socket.readable.pipeTo(socket.writable).finally(() => socket.close());
    })();
    const lazy = await node.listen(8);
    void (async () => {
      for await (const socket of lazy) globalThis.sleeper = socket;
    })();
  });
  const right = await neighbour.evaluate(async () => {
    const blocked = await node.connect("hub", 8);
    void blocked.write(pattern(16 * 1024 * 1024)).catch(() => undefined);
    const one = async (number) => {
      const socket = await node.connect("hub", 7);
      const sent = new Uint8Array(100_000).fill(number);
      const writing = socket.write(sent).then(() => socket.shutdown());
      const received = await readAll(socket);
      await writing;
      socket.close();
      return received.length === sent.length && received.every((byte) => byte === number);
    };
    const all = await Promise.all(Array.from({ length: 50 }, (_, number) => one(number)));
    blocked.reset();
    return all.filter(Boolean).length;
  });
  assert.equal(right, 50);
  for (const each of [page, neighbour]) await each.context().close();
});

test("what was read is the reader's, and what was written is the writer's again", { timeout: LIMIT }, async () => {
  const page = await tab("holder");
  const neighbour = await tab("lender");
  const sizes = [1, 8_191, 8_192, 100_000, 262_143, 262_144, 262_145, 1_000_000];
  await page.evaluate(async () => {
    globalThis.kept = [];
    globalThis.ended = [];
    const listener = await node.listen(12);
    void (async () => {
      for await (const socket of listener) {
        const parts = [];
        kept.push(parts);
        ended.push((async () => {
          for (let part; (part = await socket.read()); ) parts.push(part);
          socket.close();
        })());
      }
    })();
  });
  await neighbour.evaluate(async (sizes) => {
    const one = async (turn) => {
      const socket = await node.connect("holder", 12);
      const memory = new Uint8Array(1_000_000);
      for (const [at, size] of sizes.entries()) {
        // All from the same memory.
        await socket.write(memory.subarray(0, size).fill(16 * turn + at));
      }
      await socket.shutdown();
      await socket.over();
      socket.close();
    };
    await Promise.all([1, 2, 3].map(one));
  }, sizes);
  const said = await page.evaluate(async (sizes) => {
    await Promise.all(ended);
    const parts = kept.flat();
    const own = parts.every(({ length, byteOffset, buffer }) => byteOffset === 0 && buffer.byteLength === length);
    const apart = new Set(parts.map(({ buffer }) => buffer)).size === parts.length;
    const right = kept.map((parts) => {
      const all = parts.flatMap((part) => [...part]);
      const turn = all[0] >> 4;
      let at = 0;
      return sizes.every((size, number) => all.slice(at, (at += size)).every((byte) => byte === 16 * turn + number)) && at === all.length;
    });
    return { own, apart, right };
  }, sizes);
  assert.deepEqual(said, { own: true, apart: true, right: [true, true, true] });
  for (const each of [page, neighbour]) await each.context().close();
});

test("more connections than the backlog holds wait, and none is lost", { timeout: LIMIT }, async () => {
  const page = await tab("narrow");
  const neighbour = await tab("queue");
  await page.evaluate(async () => {
    globalThis.narrow = await node.listen(9, { backlog: 2 });
  });
  const early = await neighbour.evaluate(async () => {
    globalThis.stood = 0;
    globalThis.connecting = Array.from({ length: 10 }, async (_, number) => {
      const socket = await node.connect("narrow", 9);
      globalThis.stood += 1;
      await socket.write(new Uint8Array([number]));
      await socket.shutdown();
      return [number, [...(await readAll(socket))]];
    });
    await new Promise((resolve) => setTimeout(resolve, 1500));
    return globalThis.stood;
  });
  // A listener takes up to twice its backlog for peers that have nothing yet.
  assert.ok(early >= 2 && early <= 4, `${early} connections stand before any is accepted`);
  await page.evaluate(() => {
    void (async () => {
      for await (const socket of narrow) void socket.readable.pipeTo(socket.writable).finally(() => socket.close());
    })();
  });
  const echoed = await neighbour.evaluate(async () => {
    const all = globalThis.connecting.map(async (each) => {
      const [number, bytes] = await each;
      return bytes.length === 1 && bytes[0] === number;
    });
    return (await Promise.all(all)).filter(Boolean).length;
  });
  assert.equal(echoed, 10);
  for (const each of [page, neighbour]) await each.context().close();
});

test("bad arguments throw errors with a code and a sentence", { timeout: LIMIT }, async () => {
  const page = await tab("clumsy");
  const codes = await page.evaluate(async () => {
    const { join } = unisockets;
    const code = async (work) => {
      try {
        await work();
        return "none";
      } catch (error) {
        return error instanceof Error && error.message.length > 10 ? error.code : `bare ${error}`;
      }
    };
    const signal = (await node.status()).signaling && globalThis.location.origin;
    const [{ net }, { dgram }, { directSockets }] = await Promise.all(["net", "dgram", "direct"].map((name) => import(`/dist/${name}.js`)));
    const echo = await node.listen(7);
    void echo.accept().then((socket) => socket.readable.pipeTo(socket.writable));
    const tcp = await node.connect("clumsy", 7);
    const udp = await node.bind(0);
    // All kinds of bytes are sent as they are.
    for (const bytes of ["a", new Uint8Array([98]).buffer, new DataView(new Uint8Array([0, 99, 0]).buffer, 1, 1), new Uint16Array([25956])]) await tcp.write(bytes);
    await tcp.shutdown();
    globalThis.echoed = new TextDecoder().decode(await readAll(tcp));
    return [
      await code(() => join({ signal: "ftp://x" })),
      await code(() => join({ signal: "::" })),
      await code(() => join({ signal, name: "not a name!" })),
      await code(() => join({ signal, network: "" })),
      await code(() => join({ signal, key: new Uint8Array(3) })),
      await code(() => join(5)),
      await code(() => join({ signal, timeout: -1 })),
      await code(() => join({ signal, webrtc: 5 })),
      await code(() => join({ signal, iceServers: 5 })),
      await code(() => join({ signal, iceServers: [{}] })),
      await code(() => join({ signal, iceServers: [{ url: "http://x" }] })),
      await code(() => node.listen(70000)),
      await code(() => node.listen(1.5)),
      await code(() => node.listen(10n)),
      await code(() => node.listen(0, 5)),
      await code(() => node.serve(null, () => undefined)),
      await code(() => node.connect({ toString: null }, 80)),
      await code(() => node.fetch("http://clumsy/", { method: "TRACE" })),
      await code(() => node.fetch("http://clumsy/", { headers: { a: "b\r\nc: d" } })),
      await code(() => node.fetch("http://clumsy/", { host: "a\r\nb: c" })),
      await code(() => node.listen("80")),
      await code(() => node.connect("", 80)),
      await code(() => node.connect("a b", 80)),
      await code(() => node.connect("clumsy", 0)),
      await code(() => node.serve({ port: 80 })),
      await code(() => node.fetch("https://clumsy/")),
      await code(() => node.fetch("clumsy")),
      await code(() => tcp.write(null)),
      await code(() => tcp.write({ length: 5e9 })),
      await code(() => tcp.write([1, 2])),
      await code(() => tcp.read(0)),
      await code(() => udp.send("x", 5)),
      await code(() => udp.send("x", "nowhere")),
      await code(() => udp.send(5, "10.80.0.1:9")),
      await code(() => udp.connect(undefined)),
      await code(() => node.ping("clumsy", { len: 1e5 })),
      await code(() => node.ping("clumsy", { timeout: NaN })),
      await code(() => node.listen(0, { backlog: -1 })),
      await code(() => node.capture({ limit: NaN })),
      await code(() => node.connect("clumsy", 7, { signal: 5 })),
      await code(() => net(node).connect(null)),
      await code(() => new (directSockets(node).TCPServerSocket)("::", 5)),
      await code(() => new (directSockets(node).UDPSocket)(null)),
      await code(() => node.bind(5, { host: "10.99.0.1" })),
      await code(() => node.listen(4000).then(() => node.listen(4000))),
      await code(() => dgram(node).createSocket(null)),
    ];
  });
  assert.deepEqual(codes, [
    ...Array(43).fill("EINVAL"),
    "EADDRNOTAVAIL",
    "EADDRINUSE",
    "ERR_SOCKET_BAD_TYPE",
  ]);
  assert.equal(await page.evaluate(() => echoed), "abcde");
  const messages = await page.evaluate(async () => {
    const message = (promise) => promise.then(() => "none", (error) => `${error.code}: ${error.message}`);
    return [
      await message(unisockets.join({ module: "/nowhere.wasm" })),
      await message(node.connect("x".repeat(1e6), 80)),
      await message(unisockets.join({ signal: `${location.origin.replace("http", "ws")}`, timeout: 100 })),
    ];
  });
  assert.match(messages[0], /^ENOENT: the WebAssembly module cannot be loaded from .*nowhere\.wasm: 404/);
  assert.match(messages[1], /^EINVAL: .{1,150}$/);
  assert.match(messages[2], /^ETIMEDOUT: /);
  const late = await page.evaluate(async () => {
    const socket = await node.listen(5000);
    const waiting = socket.accept();
    await node.leave();
    return [await waiting, await node.listen(1).catch((error) => error.code)];
  });
  assert.deepEqual(late, [undefined, "ENETDOWN"]);
  await page.context().close();
});

test("a capture is a file that begins as pcapng does, with the packets in it", { timeout: LIMIT }, async () => {
  const page = await tab("watcher");
  const bytes = await page.evaluate(async () => {
    const capture = await node.capture();
    await node.ping(node.ipv4);
    await node.ping(node.ipv6);
    await node.connect("watcher", 99).catch(() => undefined);
    globalThis.packets = (await capture.packets()).map(({ link, source, protocol, info }) => [link, source === node.ipv4 ? 4 : source === node.ipv6 ? 6 : source, protocol, info.replace(/\d{5} →|→ \d{5}|window \d+/g, "")]);
    return [...new Uint8Array(await (await capture.blob()).arrayBuffer())];
  });
  assert.deepEqual(bytes.slice(0, 4), [0x0a, 0x0d, 0x0d, 0x0a]);
  const view = new DataView(Uint8Array.from(bytes).buffer);
  let packets = 0;
  for (let at = 0; at < bytes.length; at += view.getUint32(at + 4, true)) packets += Number(view.getUint32(at, true) === 6);
  assert.equal(packets, 6);
  assert.deepEqual(await page.evaluate(() => packets), [
    ["loopback", 4, "ICMP", "echo request, code 0"],
    ["loopback", 4, "ICMP", "echo, code 0"],
    ["loopback", 6, "ICMPv6", "echo request, code 0"],
    ["loopback", 6, "ICMPv6", "echo, code 0"],
    ["loopback", 4, "TCP", " 99 [SYN] 0 bytes, "],
    ["loopback", 4, "TCP", "99  [RST ACK] 0 bytes, "],
  ]);
  await page.context().close();
});

test("a capture keeps what comes while nobody looks, up to its limit", { timeout: LIMIT }, async () => {
  const page = await tab("recorder");
  const found = await page.evaluate(async () => {
    const listener = await node.listen(7);
    void (async () => {
      for await (const socket of listener) void readAll(socket);
    })();
    const pass = async (bytes) => {
      const socket = await node.connect("recorder", 7);
      for (let sent = 0; sent < bytes; sent += 1 << 20) {
        await socket.write(new Uint8Array(1 << 20));
        await new Promise((resolve) => setTimeout(resolve, 40));
      }
      socket.close();
    };
    const whole = await node.capture();
    await pass(40 << 20);
    const [size, lost] = [(await whole.blob()).size, whole.lost];
    const small = await node.capture({ limit: 1 << 20 });
    await pass(3 << 20);
    await small.blob();
    return [size > 40 << 20, lost, (await small.blob()).size <= 1 << 20, small.lost > 0];
  });
  assert.deepEqual(found, [true, 0, true, true]);
  await page.context().close();
});

test("sockets in the shape of the Direct Sockets API", { timeout: LIMIT }, async () => {
  const a = await tab("server-side");
  const b = await tab("client-side");
  const equipped = (page) =>
    page.evaluate(async () => Object.assign(globalThis, (await import("/dist/direct.js")).directSockets(node)));
  for (const page of [a, b]) await equipped(page);
  await a.evaluate(async () => {
    const { readable } = await new TCPServerSocket("::", { localPort: 7 }).opened;
    void (async () => {
      for await (const socket of readable) {
        const { readable, writable } = await socket.opened;
        void readable.pipeTo(writable);
      }
    })();
    const resetting = await node.listen(8);
    void resetting.accept().then((socket) => socket.reset());
    const udp = await new UDPSocket({ localAddress: "::", localPort: 9 }).opened;
    void udp.readable.pipeTo(udp.writable);
    // Two that wait for a word: one before it reads, one before it says what it has written.
    const patient = await new TCPServerSocket("::", { localPort: 72 }).opened;
    globalThis.released = new Promise((resolve) => (globalThis.release = resolve));
    void (async () => {
      const { readable } = await (await patient.readable.getReader().read()).value.opened;
      await released;
      let len = 0;
      for await (const part of readable) len += part.length;
      globalThis.taken = len;
    })();
    const eager = await new TCPServerSocket("::", { localPort: 73 }).opened;
    void (async () => {
      const { writable } = await (await eager.readable.getReader().read()).value.opened;
      const writer = writable.getWriter();
      await writer.write(new Uint8Array(8 << 20));
      globalThis.written = true;
      await writer.close();
    })();
  });
  const found = await b.evaluate(async (signal) => {
    const socket = new TCPSocket("server-side", 7, { noDelay: true });
    const { readable, writable, remotePort } = await socket.opened;
    const writer = writable.getWriter();
    await writer.write(new TextEncoder().encode("direct"));
    const reader = readable.getReader();
    const text = new TextDecoder().decode((await reader.read()).value);
    const locked = await socket.close().then(() => "none", (error) => error.code);
    writer.releaseLock();
    reader.releaseLock();
    await socket.close();
    // Nobody closes these: their streams end, or break.
    const ending = new TCPSocket("server-side", 7);
    const streams = await ending.opened;
    await streams.writable.close();
    await streams.readable.pipeTo(new WritableStream());
    const ended = await ending.closed.then(() => "closed", (error) => error.code);
    const breaking = new TCPSocket("server-side", 8);
    void breaking.opened.then(({ readable }) => readable.getReader().read()).catch(() => undefined);
    const broken = await breaking.closed.then(() => "closed", (error) => error.code);
    const server = new TCPServerSocket("::", { localPort: 70 });
    await (await server.opened).readable.cancel();
    await server.closed;
    const udp = await new UDPSocket({ remoteAddress: "server-side", remotePort: 9 }).opened;
    await udp.writable.getWriter().write({ data: new Uint8Array([1, 2, 3]) });
    const echo = (await udp.readable.getReader().read()).value;
    const refused = await new TCPSocket("server-side", 99).opened.then(() => "none", (error) => error.code);
    // Nothing is taken faster than the other end takes it.
    const stuck = await new TCPSocket("server-side", 72).opened;
    const pushing = stuck.writable.getWriter();
    globalThis.pushed = pushing.write(new Uint8Array(8 << 20)).then(() => pushing.close()).then(() => (globalThis.through = true));
    globalThis.unread = await new TCPSocket("server-side", 73).opened;
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    const pressed = [globalThis.through === true, pushing.desiredSize];
    let bad;
    try {
      new UDPSocket({ remoteAddress: "x" });
    } catch (error) {
      bad = error.code;
    }
    // The node leaves: whoever waits for one of its sockets hears of it.
    const second = await unisockets.join({ signal, stack: (await node.status()).runs });
    const { UDPSocket: Other } = (await import("/dist/direct.js")).directSockets(second);
    const left = new Other({ localAddress: "::", localPort: 9 });
    const reading = left.opened.then(({ readable }) => readable.getReader().read()).then(() => "read", (error) => error.code);
    await left.opened;
    await second.leave();
    const gone = [await reading, await left.closed.then(() => "closed", (error) => error.code)];
    return { pressed, gone, text, remotePort, locked, echo: [...echo.data], keys: Object.keys(echo), ended, broken, refused, bad };
  }, lab.signal);
  assert.deepEqual(found, {
    pressed: [false, 0],
    gone: ["ENETDOWN", "ENETDOWN"],
    text: "direct",
    remotePort: 7,
    locked: "EBUSY",
    echo: [1, 2, 3],
    keys: ["data"],
    ended: "closed",
    broken: "ECONNRESET",
    refused: "ECONNREFUSED",
    bad: "EINVAL",
  });
  assert.notEqual(await a.evaluate(() => globalThis.written), true, "nobody has read of it");
  await a.evaluate(() => release());
  const read = await b.evaluate(async () => {
    let len = 0;
    for await (const part of unread.readable) len += part.length;
    await pushed;
    return len;
  });
  await a.waitForFunction(() => globalThis.taken !== undefined);
  assert.deepEqual([read, await a.evaluate(() => [taken, written])], [8 << 20, [8 << 20, true]]);
  for (const page of [a, b]) await page.context().close();
});

test("a thousand connections, one after the other, leave no memory behind", { timeout: 2 * LIMIT }, async () => {
  const page = await tab("patient");
  const neighbour = await tab("restless");
  await page.evaluate(async () => void (await node.serve({ port: 80 }, () => new Response("again"))));
  const many = (count) =>
    neighbour.evaluate(async (count) => {
      for (let turn = 0; turn < count; turn += 1) {
        const text = await (await node.fetch("http://patient/")).text();
        if (text !== "again") throw new Error(text);
      }
    }, count);
  const memory = (of) => (of.workers()[0] ?? of).evaluate(async () => (await import("/core/core.js")).default().then((core) => core.memory.buffer.byteLength));
  // What the page's own objects take, without what nobody has any more.
  const heap = async (of) => {
    const session = await of.context().newCDPSession(of);
    await session.send("Performance.enable");
    await session.send("HeapProfiler.collectGarbage");
    const { metrics } = await session.send("Performance.getMetrics");
    await session.detach();
    return metrics.find(({ name }) => name === "JSHeapUsedSize").value;
  };
  await many(100);
  const before = [await memory(page), await memory(neighbour)];
  const objects = [await heap(page), await heap(neighbour)];
  await many(1_000);
  const after = [await memory(page), await memory(neighbour)];
  for (const [at, of] of [page, neighbour].entries()) {
    const bytes = await heap(of);
    assert.ok(bytes <= objects[at] + 1024 * 1024, `objects: ${objects[at]} to ${bytes} bytes`);
  }
  console.log(`    module memory: ${before} bytes after 100, ${after} after 1,100 connections`);
  for (const [at, bytes] of after.entries()) assert.ok(bytes <= before[at] + 4 * 1024 * 1024, `${before[at]} to ${bytes} bytes`);
  const sockets = await neighbour.evaluate(async () => (await node.status()).sockets.length);
  assert.equal(sockets, 0);
  // The listener is left; the last connection may still be ending.
  await page.waitForFunction(async () => (await node.status()).sockets.length === 1);
  for (const each of [page, neighbour]) await each.context().close();
});

/** Gives a page what Node.js's modules offer. */
function shape(page) {
  return page.evaluate(async () => {
    globalThis.net = (await import("/dist/net.js")).net(node);
    globalThis.dgram = (await import("/dist/dgram.js")).dgram(node);
    globalThis.happens = (emitter, event) => new Promise((resolve) => emitter.once(event, (...values) => resolve(values)));
  });
}

test("sockets in the shape of node:net and node:dgram", { timeout: LIMIT }, async () => {
  const a = await tab("node-server");
  const b = await tab("node-client");
  for (const page of [a, b]) await shape(page);
  await a.evaluate(async () => {
    globalThis.server = net.createServer((socket) => socket.pipe(socket));
    server.listen(7);
    await happens(server, "listening");
    // Its clients' ends are not the end of what it says.
    const late = net.createServer({ allowHalfOpen: true }, (socket) => {
      socket.resume();
      socket.on("end", () => socket.end("after the end"));
    });
    await happens(late.listen({ port: 8, host: "0.0.0.0" }), "listening");
    await happens(net.createServer((socket) => socket.once("data", () => socket.resetAndDestroy())).listen(9), "listening");
    const udp = dgram.createSocket("udp4", (data, from) => udp.send(data, from.port, from.address));
    await happens(udp.bind(10), "listening");
    const twice = dgram.createSocket("udp4", (data, { port, address }) => [1, 2].forEach(() => twice.send(data, port, address)));
    await happens(twice.bind(11), "listening");
    const slowly = net.createServer(async (socket) => {
      for await (const part of socket) await new Promise((resolve) => setTimeout(resolve, part.length / 1_000));
    });
    await happens(slowly.listen(12), "listening");
  });
  const found = await b.evaluate(async () => {
    const sent = pattern(4 * 1024 * 1024);
    const socket = net.connect(7, "node-server");
    const opening = [socket.connecting, socket.readyState, socket.write(sent.subarray(0, 1000))];
    await happens(socket, "connect");
    const local = socket.address();
    const parts = [];
    socket.on("data", (data) => parts.push(data));
    socket.end(sent.subarray(1000));
    await happens(socket, "end");
    const [hadError] = await happens(socket, "close");
    const same = (await hex(await new Blob(parts).arrayBuffer())) === (await hex(sent));
    const half = net.connect({ port: 8, host: "node-server" });
    half.setEncoding("utf8");
    half.end("x");
    let text = "";
    for await (const part of half) text += part;
    const refused = await happens(net.connect(99, "node-server"), "error");
    const reset = net.connect(9, "node-server");
    reset.write("x");
    const [broken] = await happens(reset, "error");
    const idle = net.connect({ port: 7, host: "node-server", timeout: 50 });
    await happens(idle, "timeout");
    const bad = [];
    // A server that is closed before it listens does not, and its port is free.
    const brief = net.createServer().listen(4000);
    const calls = [];
    for (const event of ["listening", "close", "error"]) brief.on(event, () => calls.push(event));
    brief.close();
    await new Promise((resolve) => setTimeout(resolve, 500));
    if (String(calls) !== "close" || brief.listening) throw new Error(`a brief server: ${calls}`);
    const next = net.createServer().listen(4000);
    await new Promise((resolve, reject) => (next.on("listening", resolve), next.on("error", reject)));
    next.close();
    for (const work of [() => net.connect(0, "x"), () => idle.connect(7), () => net.createServer().listen(70000), () => dgram.createSocket("tcp"), () => dgram.createSocket("udp4").send("x")]) {
      try {
        work();
        bad.push("none");
      } catch (error) {
        bad.push(error.code);
      }
    }
    idle.destroy();
    await happens(idle, "close");
    // One socket, first in vain and then with success; errors come before the end.
    const order = [];
    const again = net.connect(99, "node-server");
    for (const event of ["connect", "error", "end", "close"]) again.on(event, () => order.push(event));
    await happens(again, "close");
    again.connect(7, "node-server").destroy();
    try {
      again.connect(7, "node-server");
    } catch (error) {
      order.push(error.code);
    }
    await happens(again, "close");
    again.connect(7, "node-server").end("again");
    again.setEncoding("utf8").on("data", (text) => order.push(text));
    await happens(again, "close");
    const udp = dgram.createSocket({ type: "udp4" });
    udp.send(["he", "llo"], 10, "node-server");
    const [data, from] = await happens(udp, "message");
    udp.close();
    await happens(udp, "close");
    // Two answers at once, of which the first one closes the socket: the second is nobody's.
    const once = dgram.createSocket("udp4");
    const heard = [];
    once.on("message", () => (heard.push("message"), once.close()));
    once.on("close", () => heard.push("close"));
    once.send("two", 11, "node-server");
    await happens(once, "close");
    await new Promise((resolve) => setTimeout(resolve, 300));
    // What is idle, and what is not: a long write goes on, and nothing follows the end.
    const slow = net.connect({ port: 12, host: "node-server", timeout: 1_000 });
    const timed = [];
    slow.on("timeout", () => timed.push("timeout"));
    await happens(slow, "connect");
    await new Promise((resolve) => slow.write(pattern(3 * 1024 * 1024), resolve));
    const during = timed.length;
    const nothing = () => undefined;
    slow.setTimeout(50, nothing).setTimeout(0, nothing);
    const listeners = slow.listenerCount("timeout");
    slow.destroy();
    slow.setTimeout(10);
    await new Promise((resolve) => setTimeout(resolve, 200));
    return {
      idle: [during, listeners, timed.length],
      heard,
      opening,
      family: local.family,
      hadError,
      same,
      counted: [socket.bytesRead, socket.bytesWritten],
      text,
      refused: refused[0].code,
      broken: broken.code,
      bad,
      order,
      datagram: new TextDecoder().decode(data),
      from: [from.port, from.size, from.family],
      ip: [net.isIP("10.80.0.1"), net.isIP("fd75::1"), net.isIP("alpha"), net.isIP("300.1.1.1")],
    };
  });
  const len = 4 * 1024 * 1024;
  assert.deepEqual(found, {
    idle: [0, 1, 0],
    heard: ["message", "close"],
    opening: [true, "opening", true],
    family: "IPv4",
    hadError: false,
    same: true,
    counted: [len, len],
    text: "after the end",
    refused: "ECONNREFUSED",
    broken: "ECONNRESET",
    bad: ["EINVAL", "EISCONN", "EINVAL", "ERR_SOCKET_BAD_TYPE", "EDESTADDRREQ"],
    order: ["error", "close", "EALREADY", "close", "connect", "again", "end", "close"],
    datagram: "hello",
    from: [10, 5, "IPv4"],
    ip: [4, 6, 0, 0],
  });
  const closed = await a.evaluate(async () => {
    const address = server.address();
    let times = 0;
    server.on("close", () => (times += 1));
    server.close();
    await happens(server, "close");
    await new Promise((resolve) => setTimeout(resolve, 100));
    return [address.port, server.listening, times];
  });
  assert.deepEqual(closed, [7, false, 1]);
  assert.equal(await b.evaluate(async () => (await happens(net.connect(7, "node-server"), "error"))[0].code), "ECONNREFUSED");
  for (const page of [a, b]) await page.context().close();
});

test("sockets in the shape of Node.js's end as Node.js's do", { timeout: LIMIT }, async () => {
  const a = await tab("ends-server");
  const b = await tab("ends-client");
  for (const page of [a, b]) {
    await shape(page);
    await page.evaluate(() => {
      globalThis.said = [];
      globalThis.story = (socket) => {
        const events = [];
        for (const event of ["end", "error", "close"]) socket.on(event, (value) => events.push(event === "error" ? `error ${value.code ?? value.message}` : event));
        return happens(socket, "close").then(() => events.join(" "));
      };
      globalThis.uncaught = [];
      addEventListener("error", (event) => (uncaught.push(event.error.message), event.preventDefault()));
    });
  }
  await a.evaluate(async () => {
    globalThis.servers = [];
    const serve = async (port, listener, options = {}) => {
      const server = net.createServer(options, (socket) => (said.push(story(socket)), listener(socket)));
      servers.push(server);
      await happens(server.listen(String(port)), "listening");
    };
    // Nobody here reads.
    await serve(13, (socket) => socket.end("noon"));
    await serve(14, async (socket) => {
      let text = "";
      for await (const part of socket) text += part;
      said.push(text);
    });
    await serve(15, async (socket) => {
      for await (const part of socket) break;
    });
    await serve(16, (socket) => socket.on("data", () => {
      socket.write("had it");
      throw new Error("my mistake");
    }));
    await serve(17, async (socket) => {
      let len = 0;
      for await (const part of socket) len += part.length;
      said.push(`${len}`);
    });
  });
  const ends = await b.evaluate(async () => {
    const ends = [];
    // Those who read, and those who only say something.
    for (let turn = 0; turn < 20; turn += 1) await happens(net.connect(13, "ends-server").resume(), "close");
    const asks = net.connect(14, "ends-server");
    ends.push(story(asks));
    asks.end("hello");
    await ends[0];
    const broken = net.connect(15, "ends-server").resume();
    ends.push(story(broken));
    broken.write("some");
    await ends[1];
    const thrown = net.connect(16, "ends-server");
    ends.push(story(thrown));
    thrown.once("data", () => thrown.end("second"));
    thrown.write("first");
    await ends[2];
    // What was written arrives, however the socket is destroyed.
    const failing = net.connect("17", "ends-server");
    ends.push(story(failing));
    failing.write(new Uint8Array(300_000), () => failing.destroy(new Error("mine")));
    await ends[3];
    const gone = new AbortController();
    const waits = net.connect({ port: 13, host: "10.80.99.99", signal: gone.signal });
    ends.push(story(waits));
    gone.abort();
    await ends[4];
    class Own extends net.Socket {}
    const same = [asks instanceof net.Socket, net.createServer() instanceof net.Server, {} instanceof net.Socket, asks instanceof Own, new Own() instanceof Own];
    return { ends: await Promise.all(ends), same };
  });
  assert.deepEqual(ends, { ends: ["end close", "end close", "end close", "error mine close", "error ABORT_ERR close"], same: [true, true, false, false, true] });
  const found = await a.evaluate(async () => {
    // Which it is once the last of its sockets has ended.
    await Promise.all(servers.map((server) => happens(server.close(), "close")));
    return { said: (await Promise.all(said)).sort(), uncaught };
  });
  assert.deepEqual(found, {
    said: [...["300000", "hello"], "close", ...Array(23).fill("end close")].sort(),
    uncaught: ["my mistake", "my mistake"],
  });
  const datagrams = await b.evaluate(async () => {
    const socket = dgram.createSocket("udp4");
    await happens(socket.bind("0", "localhost"), "listening");
    const { port } = socket.address();
    socket.send(new DataView(new ArrayBuffer(3)), String(port), "localhost");
    const [data, from] = await happens(socket, "message");
    socket.send("abc", port, "localhost");
    const [text] = await happens(socket, "message");
    socket.connect(port);
    const codes = [];
    const attempt = (work) => {
      try {
        work();
      } catch (error) {
        codes.push(error.code);
      }
    };
    attempt(() => socket.connect(port));
    socket.close();
    ["close", "address", () => socket.send("x", port), () => socket.bind(0)].forEach((each) => attempt(typeof each === "string" ? () => socket[each]() : each));
    const off = new AbortController();
    const heeds = dgram.createSocket({ type: "udp6", signal: off.signal });
    const closed = happens(heeds, "close");
    off.abort();
    await closed;
    // Which is no mistake where it is closed already.
    const late = new AbortController();
    dgram.createSocket({ type: "udp4", signal: late.signal }).close();
    late.abort();
    if (uncaught.length > 0) throw new Error(uncaught[0]);
    return [data.length, from.address, text.toString(), codes];
  });
  const stopped = "ERR_SOCKET_DGRAM_NOT_RUNNING";
  assert.deepEqual(datagrams, [3, "127.0.0.1", "abc", ["ERR_SOCKET_DGRAM_IS_CONNECTED", stopped, stopped, stopped, stopped]]);
  for (const page of [a, b]) await page.context().close();
});

test("what was written before close and leave is delivered, and an end is the program's own", { timeout: LIMIT }, async () => {
  const page = await tab("keeper");
  const client = await tab("goer");
  await page.evaluate(async () => {
    globalThis.heard = [];
    const listener = await node.listen(7);
    void (async () => {
      for await (const socket of listener) {
        const heard = async () => {
          const parts = [];
          let end = "end";
          try {
            for (let part; (part = await socket.read()); ) parts.push(part);
          } catch ({ code }) {
            end = code;
          }
          const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
          return `${bytes.length} ${await hex(bytes)} ${end}`;
        };
        globalThis.heard.push(heard());
      }
    })();
    const { createServer } = (await import("/dist/net.js")).net(node);
    const server = createServer((socket) => socket.on("error", () => undefined).end("again"));
    await new Promise((resolve) => server.listen(8, resolve));
    await new Promise((resolve) => server.close(resolve));
    await new Promise((resolve) => server.listen(8, resolve));
    await node.serve({ port: 80 }, () => new Response("", { headers: { "content-disposition": 'attachment; filename="caf\xe9"' } }));
  });
  const wanted = await client.evaluate(async () => {
    const name = (await node.fetch("http://keeper/")).headers.get("content-disposition");
    const again = new TextDecoder().decode(await readAll(await node.connect("keeper", 8)));
    const [first, second, third, fourth] = await Promise.all(Array.from({ length: 4 }, () => node.connect("keeper", 7)));
    const fifth = (await import("/dist/net.js")).net(node).connect(7, "keeper");
    await new Promise((resolve) => fifth.on("error", () => undefined).once("connect", resolve));
    const parts = [700_000, 900_000, 800_000, 600_000, 1_000_000].map((length) => pattern(length));
    void first.write(parts[0]);
    first.close();
    const late = await first.write("late").catch(({ code }) => code);
    await second.write(parts[1]);
    // Nobody waits for these.
    void third.write(parts[2]);
    void fourth.write(parts[3]);
    void fourth.shutdown();
    fifth.write(parts[4]);
    await node.leave();
    const said = async (part, end) => `${part.length} ${await hex(part)} ${end}`;
    const ends = ["end", "ECONNRESET", "ECONNRESET", "end", "ECONNRESET"];
    return [name, again, late, ...(await Promise.all(parts.map((part, index) => said(part, ends[index]))))];
  });
  assert.deepEqual(wanted.slice(0, 3), ['attachment; filename="caf\xe9"', "again", "EPIPE"]);
  assert.deepEqual((await page.evaluate(() => Promise.all(globalThis.heard))).sort(), wanted.slice(3).sort());
  for (const each of [page, client]) await each.context().close();
});
