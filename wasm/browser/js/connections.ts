import type { Connections, Reports } from "./calls.js";

/** The channels of a link, by the numbers that both ends give them. */
const LANES = ["control", "interactive", "bulk", "datagram"] as const;
const DATAGRAM = 3;

/** A STUN or TURN server. */
export interface IceServer {
  url: string;
  username?: string;
  credential?: string;
}

/** What two ends tell each other before a link exists. */
type Signal =
  | { kind: "offer" | "answer"; sdp: string }
  | { kind: "candidate"; candidate: string; mid: string | null };

/** Makes a peer connection: that of the browser, or of a library for Node.js. */
export type ConnectionClass = new (settings?: RTCConfiguration) => RTCPeerConnection;

/** As the standard has it. */
function settingsWith(servers: IceServer[]): RTCConfiguration {
  const iceServers = servers.map(({ url, username, credential }) => ({
    urls: url,
    ...(username ? { username } : {}),
    ...(credential ? { credential } : {}),
  }));
  return { iceServers };
}

/** Returns why a server cannot be used here, if it cannot. */
export function refusal(connectionClass: ConnectionClass, server: IceServer): string | undefined {
  try {
    new connectionClass(settingsWith([server])).close();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

/** Makes a connection that uses those of the servers that can be used here: signaling may name others, too. */
function connect(connectionClass: ConnectionClass, servers: IceServer[]): RTCPeerConnection {
  try {
    return new connectionClass(settingsWith(servers));
  } catch {
    return new connectionClass(settingsWith(servers.filter((server) => refusal(connectionClass, server) === undefined)));
  }
}

/** The peer connections of a page's node. */
export class PageConnections implements Connections {
  readonly #class: ConnectionClass;
  readonly #open = new Map<number, PeerConnection>();
  reports!: Reports;

  constructor(connectionClass: ConnectionClass) {
    this.#class = connectionClass;
  }

  open(link: number, offers: boolean, servers: string): void {
    try {
      this.#open.set(link, new PeerConnection(this.#class, this.reports, link, offers, JSON.parse(servers)));
    } catch {
      // No connections at all: the node must hear of it, but not now.
      queueMicrotask(() => this.reports.lost(link));
    }
  }

  negotiate(link: number, signal: string): void {
    this.#open.get(link)?.negotiate(signal);
  }

  findRoute(link: number): void {
    void this.#open.get(link)?.findRoute().catch(() => undefined);
  }

  close(link: number): void {
    this.#open.get(link)?.close();
    this.#open.delete(link);
  }

  /** Closes all of them. */
  end(): void {
    for (const link of [...this.#open.keys()]) this.close(link);
  }
}

/** A peer connection with its four channels: does what the node says, and reports what happens. */
class PeerConnection {
  readonly #reports: Reports;
  readonly #link: number;
  readonly #connection: RTCPeerConnection;
  #closed = false;
  /** Signals are worked on one after the other. */
  #work: Promise<void> = Promise.resolve();
  #described = false;
  #early: RTCIceCandidateInit[] = [];

  constructor(connectionClass: ConnectionClass, reports: Reports, link: number, offers: boolean, servers: IceServer[]) {
    this.#reports = reports;
    this.#link = link;
    this.#connection = connect(connectionClass, servers);
    this.#connection.onicecandidate = ({ candidate }) => {
      if (candidate && candidate.candidate !== "") {
        this.#tell({ kind: "candidate", candidate: candidate.candidate, mid: candidate.sdpMid });
      }
    };
    this.#connection.onconnectionstatechange = () => {
      const state = this.#connection.connectionState;
      if (state === "failed" || state === "closed") this.#lose();
    };
    // Channels can be handed to a worker only as long as nothing has happened to them.
    reports.takeChannels(link, LANES.map((label, lane) => this.#channel(label, lane)));
    if (offers) this.#then(() => this.#offer());
  }

  #channel(label: string, lane: number): RTCDataChannel {
    const datagrams = lane === DATAGRAM;
    return this.#connection.createDataChannel(label, {
      negotiated: true,
      id: lane,
      ordered: !datagrams,
      ...(datagrams ? { maxRetransmits: 0 } : {}),
    });
  }

  #tell(signal: Signal): void {
    if (!this.#closed) this.#reports.signal(this.#link, JSON.stringify(signal));
  }

  #lose(): void {
    if (!this.#closed) this.#reports.lost(this.#link);
  }

  /** Does something after all that was begun before; a failure is the end of the link. */
  #then(work: () => Promise<void>): void {
    this.#work = this.#work.then(work).catch(() => this.#lose());
  }

  async #offer(): Promise<void> {
    const offer = await this.#connection.createOffer();
    // The offer leaves before gathering begins, so that candidates follow it.
    this.#tell({ kind: "offer", sdp: offer.sdp ?? "" });
    await this.#connection.setLocalDescription(offer);
  }

  /** Takes a signal of the peer. */
  negotiate(text: string): void {
    const signal = JSON.parse(text) as Signal;
    this.#then(() => this.#take(signal));
  }

  async #take(signal: Signal): Promise<void> {
    if (this.#closed) return;
    const connection = this.#connection;
    if (signal.kind === "candidate") {
      const candidate = { candidate: signal.candidate, sdpMid: signal.mid || "0", sdpMLineIndex: 0 };
      if (this.#described) await this.#try(candidate);
      else this.#early.push(candidate);
      return;
    }
    // Candidates come one by one, and are counted: a description may not bring hundreds of its own (threat T8), nor say that
    // there are no more.
    const sdp = signal.sdp.replace(/^a=(candidate|end-of-candidates)[^\r\n]*[\r\n]*/gm, "");
    await connection.setRemoteDescription({ type: signal.kind, sdp });
    this.#described = true;
    for (const candidate of this.#early.splice(0)) await this.#try(candidate);
    if (signal.kind === "offer") {
      const answer = await connection.createAnswer();
      this.#tell({ kind: "answer", sdp: answer.sdp ?? "" });
      await connection.setLocalDescription(answer);
    }
  }

  /** A candidate that the browser does not understand is one address fewer to try, no more. */
  async #try(candidate: RTCIceCandidateInit): Promise<void> {
    await this.#connection.addIceCandidate(candidate).catch(() => undefined);
  }

  async findRoute(): Promise<void> {
    const stats = await this.#connection.getStats();
    let pair: { localCandidateId: string; remoteCandidateId: string } | undefined;
    stats.forEach((entry) => {
      if (entry.type === "transport" && entry.selectedCandidatePairId) pair = stats.get(entry.selectedCandidatePairId);
    });
    if (!pair || this.#closed) return;
    const relayed = [pair.localCandidateId, pair.remoteCandidateId].some(
      (id) => stats.get(id)?.candidateType === "relay",
    );
    this.#reports.route(this.#link, relayed);
  }

  close(): void {
    this.#closed = true;
    this.#connection.onicecandidate = this.#connection.onconnectionstatechange = null;
    this.#connection.close();
  }
}
