// Sockets in the shape of the Direct Sockets API (WICG), on a node instead of the machine's own network.

import { failure, hostOf, optionsOf, portOf } from "./errors.js";
import type { Node } from "./node.js";
import type { TcpListener, TcpSocket } from "./tcp.js";
import type { UdpSocket } from "./udp.js";

/** What `TCPSocket.opened` gives. */
export interface TCPSocketOpenInfo {
  readable: ReadableStream<Uint8Array>;
  writable: WritableStream<Uint8Array>;
  remoteAddress: string;
  remotePort: number;
  localAddress: string;
  localPort: number;
}

export interface TCPSocketOptions {
  noDelay?: boolean;
  /** In milliseconds; the connection is probed after being idle for so long. */
  keepAliveDelay?: number;
}

/** What `TCPServerSocket.opened` gives. */
export interface TCPServerSocketOpenInfo {
  readable: ReadableStream<TCPSocketLike>;
  localAddress: string;
  localPort: number;
}

export interface TCPServerSocketOptions {
  localPort?: number;
  backlog?: number;
}

/** A datagram: with an address unless the socket is connected. */
export interface UDPMessage {
  data: Uint8Array;
  remoteAddress?: string;
  remotePort?: number;
}

export interface UDPSocketOptions {
  remoteAddress?: string;
  remotePort?: number;
  localAddress?: string;
  localPort?: number;
}

/** What `UDPSocket.opened` gives. */
export interface UDPSocketOpenInfo {
  readable: ReadableStream<UDPMessage>;
  writable: WritableStream<UDPMessage>;
  remoteAddress?: string;
  remotePort?: number;
  localAddress: string;
  localPort: number;
}

/** What all three kinds of sockets have. */
export interface SocketLike<Info> {
  readonly opened: Promise<Info>;
  /** Kept when the socket was closed, or all its streams have ended; broken with the error of one. */
  readonly closed: Promise<void>;
  close(): Promise<void>;
}

export type TCPSocketLike = SocketLike<TCPSocketOpenInfo>;

/** The classes of one node. */
export interface DirectSockets {
  TCPSocket: new (remoteAddress: string, remotePort: number, options?: TCPSocketOptions) => TCPSocketLike;
  TCPServerSocket: new (
    localAddress: string,
    options?: TCPServerSocketOptions,
  ) => SocketLike<TCPServerSocketOpenInfo>;
  UDPSocket: new (options: UDPSocketOptions) => SocketLike<UDPSocketOpenInfo>;
}

/** What a socket's streams tell it of their ends. */
class Ends {
  readonly #ended: (error?: unknown) => void;
  #left: number;

  constructor(streams: number, ended: (error?: unknown) => void) {
    this.#left = streams;
    this.#ended = ended;
  }

  /** One stream has ended: the last one is the end of the socket. */
  done(): void {
    this.#left -= 1;
    if (this.#left === 0) this.#ended();
  }

  /** Does something for a stream, whose failure is the end of the socket. */
  async try<T>(work: () => Promise<T>): Promise<T> {
    return work().catch((error: unknown) => {
      this.#ended(error);
      throw error;
    });
  }
}

/** The bytes, connections or datagrams of a socket, not taken faster than they are read. */
function incoming<T>(ends: Ends, next: () => Promise<T | undefined>, cancel: () => void | Promise<void>): ReadableStream<T> {
  return new ReadableStream<T>(
    {
      async pull(controller) {
        const value = await ends.try(next);
        if (value !== undefined) return controller.enqueue(value);
        controller.close();
        ends.done();
      },
      async cancel() {
        await ends.try(async () => cancel());
        ends.done();
      },
    },
    { highWaterMark: 0 },
  );
}

/** The same of bytes, which a reader may want in memory of its own. */
function incomingBytes(ends: Ends, next: () => Promise<Uint8Array | undefined>, cancel: () => Promise<void>): ReadableStream<Uint8Array> {
  return new ReadableStream({
    type: "bytes",
    async pull(controller) {
      const value = await ends.try(next);
      if (value !== undefined) return controller.enqueue(value as Uint8Array<ArrayBuffer>);
      controller.close();
      controller.byobRequest?.respond(0);
      ends.done();
    },
    async cancel() {
      await ends.try(cancel);
      ends.done();
    },
  });
}

/** A socket that is being opened, is open, or is closed. */
abstract class Base<Info> implements SocketLike<Info> {
  readonly opened: Promise<Info>;
  readonly closed: Promise<void>;
  readonly #ended: (error?: unknown) => void;
  #end: (() => void) | undefined;

  /** Opens it; `ended` is for its streams to call. */
  constructor(open: (ended: (error?: unknown) => void) => Promise<{ info: Info; end: () => void }>) {
    let settle!: (error?: unknown) => void;
    this.closed = new Promise((resolve, reject) => {
      settle = (error) => (error === undefined ? resolve() : reject(error as Error));
    });
    this.#ended = (error) => {
      this.#end?.();
      settle(error);
    };
    this.opened = open((error) => this.#ended(error)).then(
      ({ info, end }) => {
        this.#end = end;
        return info;
      },
      (error: unknown) => {
        this.#ended(error);
        throw error;
      },
    );
    // Whoever does not look at them does not want to hear of it.
    this.opened.catch(() => undefined);
    this.closed.catch(() => undefined);
  }

  /** Closes the socket; its streams must not be locked. */
  async close(): Promise<void> {
    const info = (await this.opened) as { readable?: ReadableStream; writable?: WritableStream };
    if (info.readable?.locked || info.writable?.locked) {
      throw failure("EBUSY", "release the locks of the socket's streams, then close it");
    }
    this.#ended();
    return this.closed;
  }
}

function infoOf(socket: TcpSocket, ended: (error?: unknown) => void): TCPSocketOpenInfo {
  const ends = new Ends(2, ended);
  return {
    readable: incomingBytes(ends, () => socket.read(), () => socket.shutdownReading()),
    writable: new WritableStream<Uint8Array>({
      write: (data) => ends.try(() => socket.write(data)),
      close: async () => {
        await ends.try(() => socket.shutdown());
        ends.done();
      },
      abort: (reason) => {
        socket.reset();
        ended(reason ?? failure("ECONNABORTED", "the socket's writable stream was aborted"));
      },
    }),
    remoteAddress: socket.remote.address,
    remotePort: socket.remote.port,
    localAddress: socket.local.address,
    localPort: socket.local.port,
  };
}

function bracketed(address: string, port: number): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

class Accepted extends Base<TCPSocketOpenInfo> {
  constructor(socket: TcpSocket) {
    super((ended) => Promise.resolve({ info: infoOf(socket, ended), end: () => socket.close() }));
  }
}

function arrivals(listener: TcpListener, ended: (error?: unknown) => void): ReadableStream<TCPSocketLike> {
  const accept = async (): Promise<TCPSocketLike | undefined> => {
    const socket = await listener.accept();
    return socket && new Accepted(socket);
  };
  return incoming(new Ends(1, ended), accept, () => listener.close());
}

function datagrams(socket: UdpSocket, connected: boolean, ends: Ends): ReadableStream<UDPMessage> {
  const receive = async (): Promise<UDPMessage | undefined> => {
    const message = await socket.receive();
    if (!message && !socket.closed) throw failure("ENETDOWN", "the node has left the network");
    if (!message) return undefined;
    const { address, port } = message.remote;
    return connected ? { data: message.data } : { data: message.data, remoteAddress: address, remotePort: port };
  };
  // Writing may go on: the socket is closed when that has ended too.
  return incoming(ends, receive, () => undefined);
}

/** Makes the classes of the Direct Sockets API for a node. */
export function directSockets(node: Node): DirectSockets {
  const resolved = async (host: string): Promise<string> =>
    host === "localhost" ? "127.0.0.1" : /^[\d.]+$|:/.test(host) ? host.replace(/^\[|\]$/g, "") : (await node.resolve(host)).ipv4;

  class TCPSocket extends Base<TCPSocketOpenInfo> {
    constructor(remoteAddress: string, remotePort: number, given?: TCPSocketOptions) {
      const options = optionsOf(given);
      hostOf(remoteAddress);
      portOf(remotePort, "remote port", 1);
      super(async (ended) => {
        const socket = await node.connect(remoteAddress, remotePort);
        try {
          if (options.noDelay) await socket.setNoDelay();
          if (options.keepAliveDelay !== undefined) await socket.setKeepAlive(true, options.keepAliveDelay);
        } catch (error) {
          socket.reset();
          throw error;
        }
        return { info: infoOf(socket, ended), end: () => socket.close() };
      });
    }
  }

  class TCPServerSocket extends Base<TCPServerSocketOpenInfo> {
    constructor(localAddress: string, given?: TCPServerSocketOptions) {
      const options = optionsOf(given);
      hostOf(localAddress);
      const port = portOf(options.localPort ?? 0, "local port");
      super(async (ended) => {
        const { backlog } = options;
        const listener = await node.listen(port, { host: localAddress, ...(backlog === undefined ? {} : { backlog }) });
        const { address, port: localPort } = listener.local;
        return {
          info: { readable: arrivals(listener, ended), localAddress: address, localPort },
          end: () => listener.close(),
        };
      });
    }
  }

  class UDPSocket extends Base<UDPSocketOpenInfo> {
    constructor(given?: UDPSocketOptions) {
      const options = optionsOf(given);
      const { remoteAddress, remotePort, localAddress, localPort } = options;
      if ((remoteAddress === undefined) !== (remotePort === undefined)) {
        throw failure("EINVAL", "a remote address and a remote port belong together: give both, or neither");
      }
      if (remoteAddress === undefined && localAddress === undefined) {
        throw failure("EINVAL", "give a remote address and port to be connected, or a local address to be bound");
      }
      super(async (ended) => {
        // Names first: nothing is to be closed if there is no such member.
        const remote = remoteAddress === undefined ? undefined : { address: await resolved(hostOf(remoteAddress)), port: portOf(remotePort, "remote port", 1) };
        const socket = await node.bind(localPort ?? 0, localAddress === undefined ? {} : { host: localAddress });
        try {
          if (remote) await socket.connect(bracketed(remote.address, remote.port));
        } catch (error) {
          socket.close();
          throw error;
        }
        const ends = new Ends(2, ended);
        const send = async ({ data, remoteAddress: to, remotePort: port }: UDPMessage): Promise<void> => {
          if (remote) return socket.send(data);
          if (to === undefined || port === undefined) throw failure("EDESTADDRREQ", "the datagram has no destination");
          return socket.send(data, bracketed(await resolved(hostOf(to)), portOf(port, "remote port", 1)));
        };
        const writable = new WritableStream<UDPMessage>({
          write: (message) => ends.try(() => send(message)),
          close: () => ends.done(),
          abort: (reason) => ended(reason ?? failure("ECONNABORTED", "the socket's writable stream was aborted")),
        });
        return {
          info: {
            readable: datagrams(socket, remote !== undefined, ends),
            writable,
            ...(remote ? { remoteAddress: remote.address, remotePort: remote.port } : {}),
            localAddress: socket.local.address,
            localPort: socket.local.port,
          },
          end: () => socket.close(),
        };
      });
    }
  }

  return { TCPSocket, TCPServerSocket, UDPSocket };
}
