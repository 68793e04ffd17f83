// Reads captures, as the node writes them, for those who want to look on while packets travel.

/** A packet in one line. */
export interface PacketSummary {
  /** Milliseconds since 1970. */
  time: number;
  /** The link that it took: a peer's name, or `loopback`. */
  link: string;
  direction: "in" | "out";
  source: string;
  destination: string;
  protocol: string;
  /** Bytes, with the IP header. */
  length: number;
  /** Ports, flags and the like. */
  info: string;
  /** Why the node dropped it, if it did. */
  dropped?: string;
}

const INTERFACE = 1;
const PACKET = 6;
const NAME = 2;
const COMMENT = 1;
const FLAGS = 2;
const INBOUND = 1;
const text = new TextDecoder();

/** Reads a capture as it grows; numbers in it are little-endian. */
export class PacketReader {
  readonly #links: string[] = [];

  /** Counts the packets of what comes next, and summarises the last ones. */
  read(bytes: Uint8Array, most: number): { count: number; last: PacketSummary[] } {
    const packets = this.#packets(bytes);
    return { count: packets.length, last: packets.slice(-most).map((body) => this.#packet(body)) };
  }

  #packets(bytes: Uint8Array): Uint8Array[] {
    const packets: Uint8Array[] = [];
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = 0; at + 12 <= bytes.length; ) {
      const [kind, length] = [view.getUint32(at, true), view.getUint32(at + 4, true)];
      if (length < 12 || at + length > bytes.length) break;
      const body = bytes.subarray(at + 8, at + length - 4);
      if (kind === INTERFACE) this.#links.push(text.decode(options(body.subarray(8)).get(NAME)));
      if (kind === PACKET) packets.push(body);
      at += length;
    }
    return packets;
  }

  #packet(body: Uint8Array): PacketSummary {
    const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
    const length = view.getUint32(12, true);
    const found = options(body.subarray(20 + Math.ceil(length / 4) * 4));
    const comment = found.get(COMMENT);
    const time = (view.getUint32(4, true) * 2 ** 32 + view.getUint32(8, true)) / 1e6;
    return {
      time,
      link: this.#links[view.getUint32(0, true)] ?? "",
      direction: found.get(FLAGS)?.[0] === INBOUND ? "in" : "out",
      length: view.getUint32(16, true),
      ...summary(body.subarray(20, 20 + length)),
      ...(comment ? { dropped: text.decode(comment).replace(/^dropped: /, "") } : {}),
    };
  }
}

function options(bytes: Uint8Array): Map<number, Uint8Array> {
  const found = new Map<number, Uint8Array>();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at + 4 <= bytes.length; ) {
    const [code, length] = [view.getUint16(at, true), view.getUint16(at + 2, true)];
    if (code === 0) break;
    found.set(code, bytes.subarray(at + 4, at + 4 + length));
    at += 4 + Math.ceil(length / 4) * 4;
  }
  return found;
}

const PROTOCOLS = new Map([
  [1, "ICMP"],
  [6, "TCP"],
  [17, "UDP"],
  [58, "ICMPv6"],
]);
const TCP_FLAGS = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];

/** Looks at the headers of IPv4 (RFC 791) and IPv6 (RFC 8200), and at what is behind them. */
function summary(packet: Uint8Array): Pick<PacketSummary, "source" | "destination" | "protocol" | "info"> {
  const version = (packet[0] ?? 0) >> 4;
  const least = version === 4 ? 20 : 40;
  if ((version !== 4 && version !== 6) || packet.length < least) {
    return { source: "", destination: "", protocol: "?", info: "no IP packet" };
  }
  const view = new DataView(packet.buffer, packet.byteOffset, packet.byteLength);
  const four = version === 4;
  const header = four ? ((packet[0] as number) & 15) * 4 : 40;
  const number = packet[four ? 9 : 6] as number;
  const source = four ? packet.subarray(12, 16).join(".") : ipv6(packet.subarray(8, 24));
  const destination = four ? packet.subarray(16, 20).join(".") : ipv6(packet.subarray(24, 40));
  const later = four && (view.getUint16(6) & 0x1fff) > 0;
  const info = later ? "a later fragment" : payload(number, packet.subarray(header));
  return { source, destination, protocol: PROTOCOLS.get(number) ?? `protocol ${number}`, info };
}

function payload(protocol: number, bytes: Uint8Array): string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (protocol === 6 && bytes.length >= 20) {
    const bits = bytes[13] as number;
    const flags = TCP_FLAGS.filter((_, bit) => bits & (1 << bit)).join(" ");
    const data = bytes.length - ((bytes[12] as number) >> 4) * 4;
    return `${view.getUint16(0)} → ${view.getUint16(2)} [${flags}] ${data} bytes, window ${view.getUint16(14)}`;
  }
  if (protocol === 17 && bytes.length >= 8) return `${view.getUint16(0)} → ${view.getUint16(2)}, ${view.getUint16(4) - 8} bytes`;
  if ((protocol === 1 || protocol === 58) && bytes.length >= 2) {
    const kinds = new Map([[0, "echo"], [8, "echo request"], [3, "unreachable"], [128, "echo request"], [129, "echo"], [1, "unreachable"]]);
    return `${kinds.get(bytes[0] as number) ?? `type ${bytes[0]}`}, code ${bytes[1]}`;
  }
  return `${bytes.length} bytes`;
}

/** Writes an address with its longest run of zeros left out (RFC 5952). */
function ipv6(bytes: Uint8Array): string {
  const groups = Array.from({ length: 8 }, (_, at) => (((bytes[2 * at] as number) << 8) | (bytes[2 * at + 1] as number)).toString(16));
  return new URL(`http://[${groups.join(":")}]`).hostname.slice(1, -1);
}
