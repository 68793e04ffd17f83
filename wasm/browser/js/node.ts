import { aborting } from "./aborting.js";
import type { Calls, Member, MembershipEvent } from "./calls.js";
import { type ConnectionClass, type IceServer, refusal } from "./connections.js";
import { failure, hostOf, numberOf, optionsOf, portOf, shown } from "./errors.js";
import { type FetchInit, type Handler, HttpServer, fetchOver } from "./http.js";
import { type Identity, ephemeral, identity } from "./keys.js";
import { type ModuleSource, compiled } from "./module.js";
import { PacketReader, type PacketSummary } from "./packets.js";
import { webrtc, webSocket } from "./platform.js";
import { type Running, type Runs, start } from "./start.js";
import { TcpListener, TcpSocket, written } from "./tcp.js";
import { UdpSocket } from "./udp.js";

/** How long signaling may take to let a node in, in milliseconds. */
const JOIN_TIMEOUT = 20_000;
/** How long what was written may take to be delivered on leaving, in milliseconds. */
const DRAIN_TIMEOUT = 5_000;
/** How long a goodbye may take to leave, in milliseconds. */
const GOODBYE = 150;
const BACKLOG = 128;
/** Most bytes of an echo request: its headers fit an IPv4 packet, and it is filled in one go. */
const ECHO_MAX = 65_000;
/** Bytes of a capture. */
const CAPTURE_MAX = 256 * 1024 * 1024;
/** Members that are listed. */
const MEMBERS_MAX = 65_536;
/** How often a capture is taken from the stack, in milliseconds. */
const TAKE_INTERVAL = 500;
/** Packets that wait for somebody to look at them. */
const UNREAD_MAX = 1_000;
/** STUN and TURN servers of a node's own. */
const SERVERS_MAX = 16;

/** What `join` takes. */
export interface JoinOptions {
  /** The signaling server: `ws://HOST:PORT` or `wss://HOST`. Without it, the server of this page. */
  signal?: string | URL;
  /** The network's name; `default` without it. */
  network?: string;
  /** The network's secret: everybody who knows it may join. */
  secret?: string;
  /** The name that others find this node by. */
  name?: string;
  /** A secret key of 32 bytes, or `ephemeral` for one that nobody keeps. Without it, this tab's own is kept. */
  key?: Uint8Array | "ephemeral";
  /** STUN and TURN servers besides those that signaling names. */
  iceServers?: IceServer[];
  /** How long joining may take, in milliseconds; 20,000 without it. */
  timeout?: number;
  /** Where the stack runs: in a worker if this browser can, unless `page` is given; `worker` insists. */
  stack?: Runs;
  /** The class of peer connections, if not the browser's own; in Node.js, if not that of an installed package. */
  webrtc?: ConnectionClass;
  /** Where the WebAssembly module is, if not beside this one. */
  module?: ModuleSource;
}

/** A peer of a node. */
export interface PeerStatus {
  key: string;
  name: string | null;
  ipv4: string | null;
  ipv6: string;
  path: "direct" | "relayed" | null;
  dialling: boolean;
  round_trip_us: number | null;
  mtu: number;
  counters: Record<string, number>;
  connections: number;
}

/** A socket of a node. */
export interface SocketStatus {
  kind: "tcp" | "udp" | "echo";
  local: string | null;
  remote: string | null;
  state: string | null;
  send_queue: number;
  receive_queue: number;
}

/** What a node says of itself. */
export interface Status {
  key: string;
  name: string | null;
  network: string;
  ipv4: string | null;
  ipv6: string;
  signaling: boolean;
  peers: PeerStatus[];
  sockets: SocketStatus[];
  packets: number;
  dropped: Record<string, number>;
  incidents: [number, string][];
  /** Where the stack runs. */
  runs: Runs;
}

/** An echo. */
export interface Echo {
  /** The time from request to echo, in milliseconds. */
  roundTrip: number;
  len: number;
  hopLimit: number;
}

/** A running capture, in the pcapng format. */
export class Capture {
  readonly #calls: Calls;
  readonly #capture: number;
  readonly #parts: Uint8Array<ArrayBuffer>[] = [];
  readonly #reader = new PacketReader();
  readonly #unread: PacketSummary[] = [];
  /** What comes while nobody looks is taken, too: the stack holds no more than the newest second or so. */
  readonly #timer = setInterval(() => void this.#take().catch(() => undefined), TAKE_INTERVAL);
  #limit: number;
  #length = 0;
  #unkept = 0;
  #stopped = false;
  #lost = 0;

  /** For `Node.capture`. */
  constructor(calls: Calls, capture: number, limit: number) {
    this.#calls = calls;
    this.#capture = capture;
    this.#limit = limit;
  }

  async #take(): Promise<void> {
    if (this.#stopped) return;
    const { data, lost } = await this.#calls.takeCapture(this.#capture).catch((error: unknown) => {
      // There is nothing more to come.
      clearInterval(this.#timer);
      throw error;
    });
    this.#lost = lost + this.#unkept;
    if (data.length === 0) return;
    const { count, last } = this.#reader.read(data, UNREAD_MAX);
    this.#unread.push(...last);
    if (this.#length + data.length <= this.#limit) {
      this.#length += data.length;
      this.#parts.push(data as Uint8Array<ArrayBuffer>);
    } else {
      // What is in the file stays whole: nothing more comes in.
      this.#limit = 0;
      this.#unkept += count;
    }
    this.#lost = lost + this.#unkept;
    this.#unread.splice(0, Math.max(this.#unread.length - UNREAD_MAX, 0));
  }

  /** Returns the packets since the last time, the newest 1,000 at most, for those who look on. */
  async packets(): Promise<PacketSummary[]> {
    await this.#take();
    return this.#unread.splice(0);
  }

  /** Returns everything so far as a file for Wireshark. */
  async blob(): Promise<Blob> {
    await this.#take();
    return new Blob(this.#parts, { type: "application/x-pcapng" });
  }

  /** Packets that are missing because there were too many for the limit, or at one time. */
  get lost(): number {
    return this.#lost;
  }

  /** Ends the capture. */
  async stop(): Promise<void> {
    if (this.#stopped) return;
    await this.#take().catch(() => undefined);
    this.#stopped = true;
    clearInterval(this.#timer);
    await this.#calls.endCapture(this.#capture).catch(() => undefined);
  }
}

function signalingUrl(given: string | URL | undefined): URL {
  let url: URL;
  try {
    url = new URL(given ?? globalThis.location.origin);
  } catch {
    throw failure("EINVAL", `'${shown(given)}' is no signaling URL; it looks like ws://HOST:PORT or wss://HOST`);
  }
  const schemes: Record<string, string> = { "http:": "ws:", "https:": "wss:", "ws:": "ws:", "wss:": "wss:" };
  const scheme = schemes[url.protocol];
  if (!scheme) throw failure("EINVAL", `'${shown(url.href)}' is no signaling URL; it looks like ws://HOST:PORT or wss://HOST`);
  if (url.username || url.password || url.search) throw failure("EINVAL", `a signaling URL has no user and no query: '${shown(url.href)}'`);
  // A URL's scheme can be changed between these two kinds only as a text.
  const path = given === undefined ? "" : url.pathname.replace(/\/+$/, "").replace(/\/v1$/, "");
  return new URL(`${scheme}//${url.host}${path}/v1`);
}

function checked(options: JoinOptions): void {
  const text = (name: "network" | "secret" | "name"): void => {
    const value: unknown = options[name];
    if (value !== undefined && (typeof value !== "string" || value === "")) {
      throw failure("EINVAL", `the ${name} is a text of at least one character`);
    }
    if (typeof value === "string" && /\p{Surrogate}/u.test(value)) throw failure("EINVAL", `the ${name} has half of a character in it`);
  };
  (["network", "secret", "name"] as const).forEach(text);
  const { key } = options;
  if (options.stack !== undefined && options.stack !== "worker" && options.stack !== "page") {
    throw failure("EINVAL", "the stack runs in a 'worker' or on the 'page'");
  }
  if (options.webrtc !== undefined && typeof options.webrtc !== "function") {
    throw failure("EINVAL", "'webrtc' is the class of peer connections, RTCPeerConnection");
  }
  if (key !== undefined && key !== "ephemeral" && !(key instanceof Uint8Array && key.length === 32)) {
    throw failure("EINVAL", "the key is 32 bytes, or 'ephemeral'");
  }
}

/** Checks the servers that links are made with: one that the browser refuses would fail every link. */
function checkServers(connectionClass: ConnectionClass, servers: unknown): void {
  const isServer = (server: unknown): boolean => typeof (server as IceServer | null)?.url === "string";
  if (!Array.isArray(servers) || servers.length > SERVERS_MAX || !servers.every(isServer)) {
    throw failure("EINVAL", `'iceServers' is an array of at most ${SERVERS_MAX} servers such as { url: "stun:HOST:PORT" }`);
  }
  for (const server of servers as IceServer[]) {
    const why = refusal(connectionClass, server);
    if (why !== undefined) throw failure("EINVAL", `the server '${shown(server.url)}' cannot be used here: ${why}`);
  }
}

/** Waits for a step of joining, but no longer than so many milliseconds; what comes later is ended. */
async function inTime<T>(work: Promise<T>, limit: number, what: string, end: (late: T) => void = () => undefined): Promise<T> {
  const late = AbortSignal.timeout(Math.ceil(limit));
  return aborting(work, late).catch((error: unknown) => {
    if (!late.aborted) throw error;
    void work.then(end, () => undefined);
    throw failure("ETIMEDOUT", `${what} took longer than the time limit`);
  });
}

/** Joins a network. Rejects with a sentence that says what to do. */
export async function join(given?: JoinOptions): Promise<Node> {
  const options = optionsOf(given);
  checked(options);
  const url = signalingUrl(options.signal);
  const limit = numberOf(options.timeout ?? JOIN_TIMEOUT, "the time limit in milliseconds", 1, 2 ** 31 - 1);
  const connectionClass = options.webrtc ?? (await webrtc());
  checkServers(connectionClass, options.iceServers ?? []);
  const socketClass = await webSocket();
  const until = performance.now() + limit;
  const module = await inTime(compiled(options.module), limit, "loading the module");
  const { key } = options;
  const left = (): number => Math.max(until - performance.now(), 1);
  const identifying = key === undefined ? identity() : Promise.resolve(key === "ephemeral" ? ephemeral() : ephemeral(key as Uint8Array<ArrayBuffer>));
  const own = await inTime(identifying, left(), "the browser's storage", (late) => late.release());
  const settings = {
    network: options.network ?? "default",
    secret: options.secret ?? null,
    name: options.name ?? null,
    host: url.host,
    ephemeral: !(key instanceof Uint8Array || own.kept),
    pins: own.pins,
    iceServers: options.iceServers ?? [],
  };
  let node: Node | undefined;
  const early: MembershipEvent[] = [];
  const notify = (event: MembershipEvent): void => void (node ? node.learn(event) : early.push(event));
  let running: Running;
  try {
    const starting = start({ module, url: url.href, settings, key: own.key, connectionClass, socketClass, notify }, options.stack);
    running = await inTime(starting, left(), "starting the stack", (late) => late.end());
  } catch (error) {
    own.release();
    throw error;
  }
  node = new Node(url, running, own);
  const joined = node.joined(left());
  early.forEach((event) => node?.learn(event));
  try {
    await joined;
  } catch (error) {
    node.end();
    throw error;
  }
  return node;
}

/**
 * A member of a virtual network. Events: `joined` after each time that signaling let it in, `disconnected` when
 * signaling cannot be reached (links go on), `left`.
 */
export class Node extends EventTarget {
  readonly #running: Running;
  readonly #calls: Calls;
  readonly #identity: Identity;
  readonly #url: URL;
  readonly #goodbye = ({ persisted }: Event & { persisted?: boolean }): void => {
    void this.#calls.leave().catch(() => undefined);
    // A page that the browser puts aside, and shows again, has left.
    if (persisted) globalThis.addEventListener("pageshow", () => this.end(), { once: true });
  };
  #lease: Extract<MembershipEvent, { kind: "joined" }> | undefined;
  #settle: ((error?: Error) => void) | undefined;
  #capture: Capture | undefined;
  #begun: Promise<unknown> = Promise.resolve();
  #tried = false;
  #left = false;

  /** For `join`. */
  constructor(url: URL, running: Running, own: Identity) {
    super();
    this.#url = url;
    this.#running = running;
    this.#calls = running.calls;
    this.#identity = own;
    globalThis.addEventListener?.("pagehide", this.#goodbye);
  }

  /** For `join`: waits until signaling has let the node in. */
  joined(limit: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        const why = this.#tried ? "it cannot be reached" : "it does not answer";
        this.#settle?.(
          failure("ETIMEDOUT", `the signaling server ${this.#url.origin}: ${why}; is 'unisockets signal serve' running there?`),
        );
      }, limit);
      this.#settle = (error) => {
        clearTimeout(timer);
        this.#settle = undefined;
        if (error) reject(error);
        else resolve();
      };
    });
  }

  /** For `join`: takes what the node has learnt. */
  learn(event: MembershipEvent): void {
    if (this.#left) return;
    switch (event.kind) {
      case "joined":
        this.#lease = event;
        this.#settle?.();
        this.dispatchEvent(new Event("joined"));
        return;
      case "rejected": {
        const error = failure("EACCES", event.message);
        if (this.#settle) return this.#settle(error);
        this.dispatchEvent(new CustomEvent("rejected", { detail: error }));
        return this.end();
      }
      case "disconnected":
        this.dispatchEvent(new Event("disconnected"));
        return;
      case "pins":
        return this.#identity.keepPins(event.pins);
      case "unreachable":
        this.#tried = true;
    }
  }

  #joinedLease(): Extract<MembershipEvent, { kind: "joined" }> {
    if (!this.#lease) throw failure("ENETDOWN", "the node has not joined yet");
    return this.#lease;
  }

  /** The node's public key. */
  get key(): string {
    return this.#joinedLease().key;
  }

  /** The node's name, if it has one. */
  get name(): string | undefined {
    return this.#joinedLease().name ?? undefined;
  }

  /** The network's id. */
  get network(): string {
    return this.#joinedLease().network;
  }

  get ipv4(): string {
    return this.#joinedLease().ipv4;
  }

  get ipv6(): string {
    return this.#joinedLease().ipv6;
  }

  /** Whether the node has left. */
  get left(): boolean {
    return this.#left;
  }

  /** Describes the node, its peers and its sockets. */
  async status(): Promise<Status> {
    const status = JSON.parse(await this.#calls.status()) as Omit<Status, "runs">;
    return { ...status, runs: this.#running.runs };
  }

  /** Finds out who has a name, an address or a key: ENOTFOUND if nobody has it, EAI_AGAIN if signaling does not say so within 15 s. */
  async resolve(host: string): Promise<Member> {
    const name = hostOf(host);
    const { member, error } = await this.#calls.resolve(name);
    if (!member) throw failure(error?.code ?? "EIO", `${name}: ${error?.text ?? "the answer is none"}`);
    return member;
  }

  /** Lists the members of the network that are connected now. */
  async members(): Promise<Member[]> {
    const all = new Map<string, Member>();
    let after: string | undefined;
    for (;;) {
      const { members, error } = await this.#calls.listMembers(after);
      if (!members) throw failure(error?.code ?? "EIO", error?.text ?? "the answer is none");
      const last = members.at(-1);
      if (!last) return [...all.values()];
      for (const member of members) {
        // A server that goes round in circles would be asked for ever.
        if (all.has(member.key)) throw failure("EACCES", "the signaling server names a member twice: do not trust it");
        all.set(member.key, member);
      }
      if (all.size > MEMBERS_MAX) throw failure("EMFILE", `there are more than ${MEMBERS_MAX} members: ask for one by its name`);
      after = last.key;
    }
  }

  /** Finds the address of a host: IPv4 for a name. */
  async #address(host: string, port: number): Promise<string> {
    const bare = hostOf(host).replace(/^\[|\]$/g, "");
    if (bare === "localhost") return `127.0.0.1:${port}`;
    if (/^\d+\.\d+\.\d+\.\d+$/.test(bare)) return `${bare}:${port}`;
    if (bare.includes(":")) return `[${bare}]:${port}`;
    const member = await this.resolve(bare);
    if (!member.present && member.key !== this.key) {
      throw failure("EHOSTUNREACH", `${bare} is known, but not connected now; start it, then try again`);
    }
    return `${member.ipv4}:${port}`;
  }

  /** Connects over TCP to a member's name or an address. */
  async connect(host: string, port: number, options?: { signal?: AbortSignal }): Promise<TcpSocket> {
    const { signal } = optionsOf(options);
    if (signal !== undefined && !((signal as unknown) instanceof AbortSignal)) throw failure("EINVAL", `signal is an AbortSignal, not ${shown(signal)}`);
    const target = await aborting(this.#address(host, portOf(port, "port", 1)), signal);
    return TcpSocket.connect(this.#calls, target, signal);
  }

  /** Listens for TCP connections, over IPv4 and IPv6 unless `host` is one address. Port 0 takes a free one. */
  async listen(port: number, options?: { host?: string; backlog?: number }): Promise<TcpListener> {
    const wanted = optionsOf(options);
    const local = this.#local(wanted.host, portOf(port));
    const backlog = numberOf(wanted.backlog ?? BACKLOG, "the backlog", 0, 2 ** 31 - 1);
    return new TcpListener(this.#calls, await this.#calls.tcpListen(local, backlog, false));
  }

  /** Binds a UDP socket, over IPv4 and IPv6 unless `host` is one address. Port 0 takes a free one. */
  async bind(port = 0, options?: { host?: string }): Promise<UdpSocket> {
    return new UdpSocket(this.#calls, await this.#calls.udpBind(this.#local(optionsOf(options).host, portOf(port))));
  }

  #local(host: string | undefined, port: number): string {
    const named = host === undefined ? "::" : hostOf(host).replace(/^\[|\]$/g, "");
    const bare = named === "localhost" ? "127.0.0.1" : named;
    return bare.includes(":") ? `[${bare}]:${port}` : `${bare}:${port}`;
  }

  /** Sends an echo request (ICMP) to a member's name or an address, and waits for the echo. */
  async ping(host: string, options?: { len?: number; timeout?: number }): Promise<Echo> {
    const wanted = optionsOf(options);
    const limit = AbortSignal.timeout(numberOf(wanted.timeout ?? 5_000, "the time limit in milliseconds", 1, 2 ** 31 - 1));
    const len = numberOf(wanted.len ?? 56, "the length of an echo request", 0, ECHO_MAX);
    try {
      return await this.#ping(host, len, limit);
    } catch (error) {
      throw limit.aborted ? failure("ETIMEDOUT", `${host} does not answer`) : error;
    }
  }

  async #ping(host: string, len: number, limit: AbortSignal): Promise<Echo> {
    const target = await aborting(this.#address(host, 0), limit);
    const socket = new UdpSocket(this.#calls, await this.#calls.echoBind(target.startsWith("[")));
    try {
      const request = crypto.getRandomValues(new Uint8Array(2 + len));
      const began = performance.now();
      await aborting(socket.send(request, target), limit);
      for (;;) {
        const echo = await socket.receive(limit);
        if (!echo) throw failure("ENETDOWN", "the node has left the network");
        if (echo.data[0] === request[0] && echo.data[1] === request[1]) {
          return { roundTrip: performance.now() - began, len: request.length - 2, hopLimit: echo.hopLimit };
        }
      }
    } finally {
      socket.close();
    }
  }

  /** Serves HTTP/1.1: `await node.serve({ port: 80 }, (request) => new Response("hello"))`. */
  async serve(options: { port: number; host?: string }, handler: Handler): Promise<HttpServer> {
    if (typeof handler !== "function") throw failure("EINVAL", "a server needs a function that answers requests");
    return new HttpServer(await this.listen(optionsOf(options).port, options), handler);
  }

  /** Fetches from a member: `await node.fetch("http://alpha/")`. */
  fetch(input: Request | URL | string, init?: FetchInit): Promise<Response> {
    return fetchOver((host, port, signal) => this.connect(host, port, { signal }), input, init);
  }

  /** Captures every packet from now on, up to so many bytes (256 MiB without `limit`); what ran before ends. */
  async capture(options?: { limit?: number }): Promise<Capture> {
    const limit = numberOf(optionsOf(options).limit ?? CAPTURE_MAX, "the limit in bytes", 0, Number.MAX_SAFE_INTEGER);
    // One after the other: each ends the one before it.
    const begun = this.#begun.then(async () => {
      await this.#capture?.stop();
      this.#capture = new Capture(this.#calls, await this.#calls.beginCapture(), limit);
      if (this.#left) await this.#capture.stop();
      return this.#capture;
    });
    this.#begun = begun.catch(() => undefined);
    return begun;
  }

  /**
   * Leaves the network: what was written is delivered first, within 5 s, then peers and signaling are told. A connection that
   * is neither shut nor closed is broken off: its peer reads what was written, then ECONNRESET.
   */
  async leave(): Promise<void> {
    if (this.#left) return;
    const until = performance.now() + DRAIN_TIMEOUT;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise((resolve) => (timer = setTimeout(resolve, DRAIN_TIMEOUT)));
    await Promise.race([written(this.#calls), late]);
    clearTimeout(timer);
    while (performance.now() < until && (await this.#calls.finish().catch(() => 0)) > 0) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await this.#calls.leave().catch(() => undefined);
    await new Promise((resolve) => setTimeout(resolve, GOODBYE));
    await this.#capture?.stop();
    this.end();
  }

  /** For `join`: ends everything at once. */
  end(): void {
    if (this.#left) return;
    this.#left = true;
    globalThis.removeEventListener?.("pagehide", this.#goodbye);
    void this.#capture?.stop();
    this.#running.end();
    this.#identity.release();
    this.dispatchEvent(new Event("left"));
  }
}
