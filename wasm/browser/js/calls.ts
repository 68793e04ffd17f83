/** An address and a port. */
export interface Address {
  address: string;
  port: number;
}

/** A socket that is bound, by its number. */
export interface Bound {
  socket: number;
  local: Address;
}

/** A connection. */
export interface Connected extends Bound {
  remote: Address;
}

/** A datagram, and who sent it. */
export interface Message {
  data: Uint8Array;
  remote: Address;
  hopLimit: number;
}

/** What was captured since the last time. */
export interface Captured {
  data: Uint8Array;
  /** Packets that are missing because nobody took those before. */
  lost: number;
}

/** What the node learns about its membership. */
export type MembershipEvent =
  | { kind: "joined"; key: string; network: string; name: string | null; ipv4: string; ipv6: string }
  | { kind: "rejected"; code: string; message: string }
  | { kind: "disconnected" }
  | { kind: "pins"; pins: Record<string, string> }
  | { kind: "unreachable" };

/** What signaling has answered. */
export interface Answer {
  member?: Member;
  members?: Member[];
  error?: { code: string; text: string };
}

/** A member of the network. */
export interface Member {
  key: string;
  name: string | null;
  ipv4: string;
  ipv6: string;
  /** Whether it is connected to signaling now. */
  present: boolean;
}

/** What a node is made of. */
export interface Settings {
  network: string;
  secret: string | null;
  name: string | null;
  host: string;
  ephemeral: boolean;
  pins: Record<string, string> | null;
  iceServers: { url: string; username?: string; credential?: string }[];
}

/**
 * The calls on a node, wherever its stack runs: beside the caller, or in a worker. Each waits until it is done; closing
 * the socket ends the wait with EBADF, the end of the node with ENETDOWN.
 */
export interface Calls {
  tcpConnect(remote: string): Promise<number>;
  tcpConnected(socket: number): Promise<Connected>;
  tcpListen(local: string, backlog: number, onlyV6: boolean): Promise<Bound>;
  tcpAccept(socket: number): Promise<Connected>;
  /** Reads what there is; an empty array is the end of the stream. */
  tcpRead(socket: number, most: number): Promise<Uint8Array>;
  /** Writes all of it. */
  tcpWrite(socket: number, data: Uint8Array): Promise<void>;
  /** Waits until the connection is over both ways, or has failed. */
  tcpOver(socket: number): Promise<void>;
  /** 0 reading, 1 writing, 2 both. */
  shutdown(socket: number, how: 0 | 1 | 2): Promise<void>;
  setOption(socket: number, option: string, value: number): Promise<void>;
  close(socket: number, reset: boolean): Promise<void>;
  udpBind(local: string): Promise<Bound>;
  udpConnect(socket: number, remote: string): Promise<void>;
  echoBind(v6: boolean): Promise<Bound>;
  sendTo(socket: number, data: Uint8Array, remote: string | undefined): Promise<void>;
  receiveFrom(socket: number): Promise<Message>;
  /** The status, in JSON. */
  status(): Promise<string>;
  resolve(host: string): Promise<Answer>;
  listMembers(after: string | undefined): Promise<Answer>;
  beginCapture(): Promise<number>;
  takeCapture(capture: number): Promise<Captured>;
  endCapture(capture: number): Promise<void>;
  /** Lets no connection take more bytes; gives how many have something to deliver: bytes, or their end. */
  finish(): Promise<number>;
  leave(): Promise<void>;
  /** Ends everything at once. */
  end(): Promise<void>;
}

/** Where peer connections are made: on the page, for only pages have them. */
export interface Connections {
  open(link: number, offers: boolean, servers: string): void;
  negotiate(link: number, signal: string): void;
  /** Finds out how the packets of an open link travel. */
  findRoute(link: number): void;
  close(link: number): void;
}

/** What is learnt of peer connections. */
export interface Reports {
  /** The four channels of a link, before they open. */
  takeChannels(link: number, channels: RTCDataChannel[]): void;
  signal(link: number, signal: string): void;
  lost(link: number): void;
  route(link: number, relayed: boolean): void;
}
