export { type NetworkError } from "./errors.js";
export { type Handler, HttpServer, type RequestInfo } from "./http.js";
export {
  Capture,
  type Echo,
  type JoinOptions,
  type Member,
  Node,
  type PeerStatus,
  type SocketStatus,
  type Status,
  join,
} from "./node.js";
export { type Address, TcpListener, TcpSocket } from "./tcp.js";
export { type Message, UdpSocket } from "./udp.js";
