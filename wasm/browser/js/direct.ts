// Sockets in the shape of the Direct Sockets API (WICG), on a node instead of the machine's own network.

import { failure, hostOf, portOf } from "./errors.js";
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

/** A socket that is being opened, is open, or is closed. */
abstract class Base<Info> implements SocketLike<Info> {
  readonly opened: Promise<Info>;
  readonly closed: Promise<void>;
  protected ended!: (error?: unknown) => void;
  #end: (() => void) | undefined;

  constructor(open: (own: Base<Info>) => Promise<{ info: Info; end: () => void }>) {
    this.closed = new Promise((resolve, reject) => {
      this.ended = (error) => (error === undefined ? resolve() : reject(error as Error));
    });
    this.opened = open(this).then(
      ({ info, end }) => {
        this.#end = end;
        return info;
      },
      (error: unknown) => {
        this.ended(error);
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
    this.#end?.();
    this.ended();
    return this.closed;
  }
}

function infoOf(socket: TcpSocket): TCPSocketOpenInfo {
  return {
    readable: socket.readable,
    writable: socket.writable,
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
    super(() => Promise.resolve({ info: infoOf(socket), end: () => socket.close() }));
  }
}

function arrivals(listener: TcpListener): ReadableStream<TCPSocketLike> {
  return new ReadableStream<TCPSocketLike>(
    {
      async pull(controller) {
        const socket = await listener.accept();
        if (socket) controller.enqueue(new Accepted(socket));
        else controller.close();
      },
      cancel: () => listener.close(),
    },
    { highWaterMark: 0 },
  );
}

function datagrams(socket: UdpSocket, connected: boolean): ReadableStream<UDPMessage> {
  return new ReadableStream<UDPMessage>(
    {
      async pull(controller) {
        const message = await socket.receive();
        if (!message) return controller.close();
        const { address, port } = message.remote;
        controller.enqueue(connected ? { data: message.data } : { data: message.data, remoteAddress: address, remotePort: port });
      },
      cancel: () => socket.close(),
    },
    { highWaterMark: 0 },
  );
}

/** Makes the classes of the Direct Sockets API for a node. */
export function directSockets(node: Node): DirectSockets {
  const resolved = async (host: string): Promise<string> =>
    /^[\d.]+$|:/.test(host) ? host.replace(/^\[|\]$/g, "") : (await node.resolve(host)).ipv4;

  class TCPSocket extends Base<TCPSocketOpenInfo> {
    constructor(remoteAddress: string, remotePort: number, options: TCPSocketOptions = {}) {
      hostOf(remoteAddress);
      portOf(remotePort, "remote port", 1);
      super(async () => {
        const socket = await node.connect(remoteAddress, remotePort);
        try {
          if (options.noDelay) await socket.setNoDelay();
          if (options.keepAliveDelay !== undefined) await socket.setKeepAlive(true, options.keepAliveDelay);
        } catch (error) {
          socket.reset();
          throw error;
        }
        return { info: infoOf(socket), end: () => socket.close() };
      });
    }
  }

  class TCPServerSocket extends Base<TCPServerSocketOpenInfo> {
    constructor(localAddress: string, options: TCPServerSocketOptions = {}) {
      hostOf(localAddress);
      const port = portOf(options.localPort ?? 0, "local port");
      super(async () => {
        const { backlog } = options;
        const listener = await node.listen(port, { host: localAddress, ...(backlog === undefined ? {} : { backlog }) });
        const { address, port: localPort } = listener.local;
        return {
          info: { readable: arrivals(listener), localAddress: address, localPort },
          end: () => listener.close(),
        };
      });
    }
  }

  class UDPSocket extends Base<UDPSocketOpenInfo> {
    constructor(options: UDPSocketOptions) {
      const { remoteAddress, remotePort, localAddress, localPort } = options;
      if ((remoteAddress === undefined) !== (remotePort === undefined)) {
        throw failure("EINVAL", "a remote address and a remote port belong together: give both, or neither");
      }
      if (remoteAddress === undefined && localAddress === undefined) {
        throw failure("EINVAL", "give a remote address and port to be connected, or a local address to be bound");
      }
      super(async () => {
        // Names first: nothing is to be closed if there is no such member.
        const remote = remoteAddress === undefined ? undefined : { address: await resolved(hostOf(remoteAddress)), port: portOf(remotePort, "remote port", 1) };
        const socket = await node.bind(localPort ?? 0, localAddress === undefined ? {} : { host: localAddress });
        if (remote) await socket.connect(bracketed(remote.address, remote.port));
        const writable = new WritableStream<UDPMessage>({
          write: async ({ data, remoteAddress: to, remotePort: port }) => {
            if (remote) return socket.send(data);
            if (to === undefined || port === undefined) throw failure("EDESTADDRREQ", "the datagram has no destination");
            return socket.send(data, bracketed(await resolved(hostOf(to)), portOf(port, "remote port", 1)));
          },
        });
        return {
          info: {
            readable: datagrams(socket, remote !== undefined),
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
