import type { Capture } from "../core/core.js";
import type { Address, Answer, Bound, Calls, Captured, Connected, Message } from "./calls.js";
import type { Carriers } from "./carriers.js";
import type { Engine } from "./engine.js";
import { failure } from "./errors.js";

/** Splits `10.80.0.1:80` or `[fd75:6e69::1]:80`. */
function split(text: string): Address {
  const at = text.lastIndexOf(":");
  return { address: text.slice(0, at).replace(/^\[|\]$/g, ""), port: Number(text.slice(at + 1)) };
}

/** The calls on a node of this thread. */
export class LocalCalls implements Calls {
  readonly #engine: Engine;
  readonly #carriers: Carriers;
  readonly #captures = new Map<number, Capture>();
  #lastCapture = 0;

  constructor(engine: Engine, carriers: Carriers) {
    this.#engine = engine;
    this.#carriers = carriers;
  }

  #bound(socket: number): Bound {
    return { socket, local: split(this.#engine.call((core) => core.localAddress(socket))) };
  }

  #connected(socket: number): Connected {
    return { ...this.#bound(socket), remote: split(this.#engine.call((core) => core.remoteAddress(socket))) };
  }

  async tcpConnect(remote: string): Promise<number> {
    return this.#engine.call((core, now) => core.tcpConnect(now, remote));
  }

  async tcpConnected(socket: number): Promise<Connected> {
    while (!this.#engine.call((core) => core.isConnected(socket))) await this.#engine.readiness(socket, "write");
    return this.#connected(socket);
  }

  async tcpListen(local: string, backlog: number, onlyV6: boolean): Promise<Bound> {
    return this.#bound(this.#engine.call((core, now) => core.tcpListen(now, local, backlog, onlyV6)));
  }

  async tcpAccept(listener: number): Promise<Connected> {
    for (;;) {
      const socket = this.#engine.call((core, now) => core.accept(now, listener));
      if (socket === undefined) {
        await this.#engine.readiness(listener, "read");
        continue;
      }
      try {
        return this.#connected(socket);
      } catch {
        // It has ended already.
        this.#engine.closeSocket(socket, true);
      }
    }
  }

  async tcpRead(socket: number, most: number): Promise<Uint8Array> {
    for (;;) {
      const data = this.#carriers.fill(most, (into) => this.#engine.receive(socket, into));
      if (data) return data;
      await this.#engine.readiness(socket, "read");
    }
  }

  async tcpWrite(socket: number, data: Uint8Array): Promise<void> {
    for (let rest = data; rest.length > 0; ) {
      const part = rest;
      const taken = this.#engine.call((core, now) => core.send(now, socket, part));
      if (taken < 0) await this.#engine.readiness(socket, "write");
      else rest = rest.subarray(taken);
    }
  }

  async tcpOver(socket: number): Promise<void> {
    while (!this.#engine.call((core) => core.isOver(socket))) await this.#engine.readiness(socket, "any");
  }

  async shutdown(socket: number, how: 0 | 1 | 2): Promise<void> {
    this.#engine.call((core, now) => core.shutdown(now, socket, how));
  }

  async setOption(socket: number, option: string, value: number): Promise<void> {
    this.#engine.call((core) => core.setOption(socket, option, value));
  }

  async close(socket: number, reset: boolean): Promise<void> {
    this.#engine.closeSocket(socket, reset);
  }

  async udpBind(local: string): Promise<Bound> {
    return this.#bound(this.#engine.call((core, now) => core.udpBind(now, local, false)));
  }

  async udpConnect(socket: number, remote: string): Promise<void> {
    this.#engine.call((core, now) => core.udpConnect(now, socket, remote));
  }

  async echoBind(v6: boolean): Promise<Bound> {
    return this.#bound(this.#engine.call((core, now) => core.echoBind(now, v6)));
  }

  async sendTo(socket: number, data: Uint8Array, remote: string | undefined): Promise<void> {
    while (this.#engine.call((core, now) => core.sendTo(now, socket, data, remote)) < 0) {
      await this.#engine.readiness(socket, "write");
    }
  }

  async receiveFrom(socket: number): Promise<Message> {
    for (;;) {
      const datagram = this.#engine.call((core) => core.recvFrom(socket));
      if (datagram) {
        const message = { data: datagram.data, remote: split(datagram.remote), hopLimit: datagram.hopLimit };
        datagram.free();
        return message;
      }
      await this.#engine.readiness(socket, "read");
    }
  }

  async status(): Promise<string> {
    return this.#engine.call((core, now) => core.status(now));
  }

  resolve(host: string): Promise<Answer> {
    return this.#engine.ask((core, now) => core.resolve(now, host));
  }

  listMembers(after: string | undefined): Promise<Answer> {
    return this.#engine.ask((core, now) => core.listMembers(now, after));
  }

  async beginCapture(): Promise<number> {
    const capture = this.#engine.call((core, now) => core.capture(now, Date.now()));
    // The node has one capture at a time; what the one before it holds can still be taken.
    this.#lastCapture += 1;
    this.#captures.set(this.#lastCapture, capture);
    return this.#lastCapture;
  }

  async takeCapture(number: number): Promise<Captured> {
    const capture = this.#captures.get(number);
    if (!capture) throw failure("EBADF", "the capture is over");
    return { data: capture.take() as Uint8Array, lost: capture.lost };
  }

  async endCapture(number: number): Promise<void> {
    const capture = this.#captures.get(number);
    this.#captures.delete(number);
    if (capture && number === this.#lastCapture && !this.#engine.ended) this.#engine.call((core) => core.endCapture());
    capture?.free();
  }

  async finish(): Promise<number> {
    return this.#engine.call((core) => core.finish());
  }

  async leave(): Promise<void> {
    if (!this.#engine.ended) this.#engine.call((core, now) => core.leave(now));
  }

  async end(): Promise<void> {
    this.#engine.end();
  }
}
