import init, { Core } from "../core/core.js";
import type { Answer, Connections, MembershipEvent, Reports, Settings } from "./calls.js";
import { Channels } from "./channels.js";
import { failure } from "./errors.js";
import type { SocketClass } from "./platform.js";

/** How long signaling may take to answer, in milliseconds. */
const ANSWER_TIMEOUT = 15_000;
/** The state of an open WebSocket. */
const OPEN = 1;

/** What a node's loop needs from where it runs. */
export interface Surroundings {
  connections: Connections;
  socketClass: SocketClass;
  notify: (event: MembershipEvent) => void;
}

interface Waiting {
  read: (() => void)[];
  write: (() => void)[];
  /** Whoever wants to know of every change. */
  any: (() => void)[];
  /** News that came while nobody waited: whoever waits next looks again at once. */
  readNews: boolean;
  writeNews: boolean;
}

function wakeAll({ read, write, any }: Waiting): void {
  [...read, ...write, ...any].forEach((wake) => wake());
}

/** The answer that there is none. */
function failed(code: string, text: string): string {
  return JSON.stringify({ error: { code, text } } satisfies Answer);
}

let loaded: Promise<void> | undefined;
/** That of the instance. */
let memory: WebAssembly.Memory;

/** Makes an instance of the module in this thread, once. */
export function load(module: WebAssembly.Module): Promise<void> {
  loaded ??= init({ module_or_path: module }).then(
    (instance) => void (memory = instance.memory),
    (error: unknown) => {
      loaded = undefined;
      throw error;
    },
  );
  return loaded;
}

/** The loop around a node: its clock, its links, signaling, and who waits for which socket. */
export class Engine implements Reports {
  readonly #core: Core;
  readonly #url: string;
  readonly #notify: (event: MembershipEvent) => void;
  readonly #connections: Connections;
  readonly #socketClass: SocketClass;
  /** Links, with their channels as soon as these have been made. */
  readonly #links = new Map<number, Channels | undefined>();
  readonly #waiting = new Map<number, Waiting>();
  readonly #questions = new Map<number, (answer: string) => void>();
  /** Answers that came before anybody waited for them. */
  readonly #answers = new Map<number, string>();
  #signaling: WebSocket | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #armed = Infinity;
  #ended = false;

  constructor(url: string, settings: Settings, key: Uint8Array, surroundings: Surroundings) {
    this.#url = url;
    this.#connections = surroundings.connections;
    this.#socketClass = surroundings.socketClass;
    this.#notify = surroundings.notify;
    const seed = crypto.getRandomValues(new Uint8Array(32));
    const text = JSON.stringify({ ...settings, originUnixMs: Math.round(performance.timeOrigin) });
    this.#core = new Core(this, text, key, seed);
    this.#tick();
  }

  get #now(): number {
    return performance.now() * 1000;
  }

  /** Calls the node, and sets the timer for what follows. */
  call<T>(work: (core: Core, now: number) => T): T {
    if (this.#ended) throw failure("ENETDOWN", "the node has left the network");
    try {
      return work(this.#core, this.#now);
    } finally {
      this.#arm();
    }
  }

  /** Receives from a connection as much as there is room for; returns how many bytes, 0 at the end of the stream, or -1 where
   * there is nothing. */
  receive(socket: number, into: Uint8Array): number {
    const length = this.call((core, now) => core.recv(now, socket, into.length));
    if (length > 0) into.set(new Uint8Array(memory.buffer, this.#core.receivedAt(), length));
    return length;
  }

  #tick(): void {
    this.#timer = undefined;
    this.#armed = Infinity;
    if (!this.#ended) this.call((core, now) => core.timeout(now, Date.now()));
  }

  #arm(): void {
    const due = this.#core.nextTimeout();
    if (due >= this.#armed) return;
    clearTimeout(this.#timer);
    this.#armed = due;
    const wait = Math.min(Math.max((due - this.#now) / 1000, 0), 2 ** 31 - 1);
    this.#timer = setTimeout(() => this.#tick(), wait);
  }

  /** Waits until a socket may be read from, or written to. */
  readiness(socket: number, interest: "read" | "write" | "any"): Promise<void> {
    const waiting = this.#waitingFor(socket);
    if (interest === "any") return new Promise((resolve) => waiting.any.push(resolve));
    const news = interest === "read" ? "readNews" : "writeNews";
    if (waiting[news]) {
      waiting[news] = false;
      return Promise.resolve();
    }
    return new Promise((resolve) => waiting[interest].push(resolve));
  }

  #waitingFor(socket: number): Waiting {
    let waiting = this.#waiting.get(socket);
    if (!waiting) {
      waiting = { read: [], write: [], any: [], readNews: false, writeNews: false };
      this.#waiting.set(socket, waiting);
    }
    return waiting;
  }

  /** Closes a socket, and wakes whoever waits for it. */
  closeSocket(socket: number, reset: boolean): void {
    const waiting = this.#waiting.get(socket);
    this.#waiting.delete(socket);
    if (!this.#ended) this.call((core, now) => core.close(now, socket, reset));
    if (waiting) wakeAll(waiting);
  }

  /** Asks something whose answer comes later; it is JSON. None within {@link ANSWER_TIMEOUT} is one, too. */
  async ask(question: (core: Core, now: number) => number): Promise<Answer> {
    const id = this.call(question);
    const answered = this.#answers.get(id);
    this.#answers.delete(id);
    return JSON.parse(answered ?? (await this.#answer(id))) as Answer;
  }

  async #answer(id: number): Promise<string> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    try {
      return await new Promise<string>((resolve) => {
        this.#questions.set(id, resolve);
        timer = setTimeout(() => {
          this.#questions.delete(id);
          this.call((core) => core.withdraw(id));
          resolve(failed("EAI_AGAIN", "the signaling server does not answer; try again when it can be reached"));
        }, ANSWER_TIMEOUT);
      });
    } finally {
      clearTimeout(timer);
    }
  }

  /** Ends everything at once. */
  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#timer);
    this.disconnect();
    for (const link of [...this.#links.keys()]) this.closeLink(link);
    this.#waiting.forEach(wakeAll);
    this.#waiting.clear();
    for (const answer of this.#questions.values()) answer(failed("ENETDOWN", "the node has left the network"));
    this.#questions.clear();
    this.#core.free();
  }

  get ended(): boolean {
    return this.#ended;
  }

  // What is learnt of links.

  takeChannels(link: number, channels: RTCDataChannel[]): void {
    if (this.#links.has(link)) this.#links.set(link, new Channels(this, link, channels));
    else channels.forEach((channel) => channel.close());
  }

  signal(link: number, signal: string): void {
    if (!this.#ended) this.call((core, now) => core.linkSignal(now, link, signal));
  }

  lost(link: number): void {
    const open = this.#links.get(link)?.open ?? false;
    if (!this.#ended) this.call((core, now) => core.linkLost(now, link, open));
  }

  route(link: number, relayed: boolean): void {
    if (!this.#ended) this.call((core) => core.linkRoute(link, relayed));
  }

  findRoute(link: number): void {
    this.#connections.findRoute(link);
  }

  // What the node calls.

  openLink(id: number, offers: boolean, servers: string): void {
    this.#links.set(id, undefined);
    this.#connections.open(id, offers, servers);
  }

  negotiate(id: number, signal: string): void {
    this.#connections.negotiate(id, signal);
  }

  sendMessage(id: number, lane: number, message: Uint8Array): boolean {
    return this.#links.get(id)?.send(lane, message) ?? false;
  }

  buffered(id: number): Uint32Array {
    return this.#links.get(id)?.buffered() ?? new Uint32Array(4);
  }

  watch(id: number, lane: number, bytes: number): void {
    this.#links.get(id)?.watch(lane, bytes);
  }

  closeLink(id: number): void {
    this.#links.get(id)?.close();
    this.#links.delete(id);
    this.#connections.close(id);
  }

  connect(): void {
    let socket: WebSocket;
    try {
      socket = new this.#socketClass(this.#url);
    } catch {
      queueMicrotask(() => this.#disconnected());
      return;
    }
    this.#signaling = socket;
    socket.onmessage = ({ data }: MessageEvent<unknown>) => {
      if (this.#signaling === socket && typeof data === "string") {
        this.call((core, now) => core.signalingFrame(now, data));
      }
    };
    // What follows is the close; a package for Node.js throws where nobody listens for the error before it.
    socket.onerror = () => undefined;
    socket.onclose = () => {
      if (this.#signaling === socket) this.#disconnected();
    };
  }

  #disconnected(): void {
    this.#signaling = undefined;
    if (this.#ended) return;
    this.#notify({ kind: "unreachable" });
    this.call((core, now) => core.signalingClosed(now));
  }

  sendFrame(frame: string): void {
    if (this.#signaling?.readyState === OPEN) this.#signaling.send(frame);
  }

  disconnect(): void {
    const socket = this.#signaling;
    this.#signaling = undefined;
    socket?.close();
  }

  ready(socket: number, read: boolean, write: boolean): void {
    const waiting = this.#waitingFor(socket);
    waiting.readNews ||= read && waiting.read.length === 0;
    waiting.writeNews ||= write && waiting.write.length === 0;
    // A promise's reactions run after this call has returned.
    waiting.any.splice(0).forEach((wake) => wake());
    if (read) waiting.read.splice(0).forEach((wake) => wake());
    if (write) waiting.write.splice(0).forEach((wake) => wake());
  }

  answered(id: number, answer: string): void {
    const waiting = this.#questions.get(id);
    this.#questions.delete(id);
    if (waiting) waiting(answer);
    else this.#answers.set(id, answer);
  }

  event(text: string): void {
    const event = JSON.parse(text) as MembershipEvent;
    queueMicrotask(() => this.#notify(event));
  }
}
