export { type NetworkError } from "./errors.js";
export { type FetchInit, type Handler, HttpServer, type RequestInfo } from "./http.js";
export {
  Capture,
  type Echo,
  type JoinOptions,
  Node,
  type PeerStatus,
  type SocketStatus,
  type Status,
  join,
} from "./node.js";
export { type Address, type Member, type Message } from "./calls.js";
export { TcpListener, TcpSocket } from "./tcp.js";
export { UdpSocket } from "./udp.js";
export { type PacketSummary } from "./packets.js";
