//! The real link: four WebRTC data channels to one peer, natively.
//!
//! `send` is synchronous and only fills the queue; one task owns the channels and drains it, one task
//! for each lane delivers what arrives, and one follows the negotiation.

mod bad_wire;
mod drain;
mod negotiation;
mod repaired;
mod repeated;
mod route;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rtc::ice::mdns::MulticastDnsMode;
use rtc::peer_connection::configuration::setting_engine::SctpMaxMessageSize;
use rtc::peer_connection::transport::RTCDtlsRole;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tracing::{Instrument, debug, trace};
use webrtc::data_channel::{DataChannel, DataChannelEvent, RTCDataChannelInit};
use webrtc::error::Error as RtcError;
use webrtc::peer_connection::{
    PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCConfigurationBuilder, RTCIceServer,
    RTCIceTransportPolicy, RTCPeerConnectionIceEvent, RTCPeerConnectionState, SettingEngine, SettingEngineBuilder,
};
use webrtc::runtime::AsyncUdpSocket;

use self::bad_wire::BadWire;
use self::negotiation::Negotiation;
use self::repaired::{Repaired, Repairs};
use self::repeated::Repeated;
use crate::budget::BUDGET_MAX;
use crate::fault::Conditions;
use crate::frame::{self, Probe};
use crate::lanes::Lane;
use crate::liveness::Liveness;
use crate::outgoing::Outgoing;
use crate::signal::{self, IceServer, Role, Signal};
use crate::sockets::{Activity, TunedRuntime};
use crate::{Counters, Event, Full, Link, Lost, Room, Route, Sink};

/// How long two peers may look for a path to each other.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Signals of the peer that wait to be worked on.
const SIGNALS_MAX: usize = 2 * signal::CANDIDATES_MAX;
/// How long a direct path may take to be found before one through a relay is good enough.
const RELAY_WAIT: Duration = Duration::from_secs(1);
/// How often an allocation on a TURN server is refreshed at least. The library does not repeat a refresh that failed
/// because the server wants a new nonce (RFC 8489, section 9.2.5), but waits for the next: at half of the allocation's
/// lifetime, which is its own, that one can come too late.
const ALLOCATION_REFRESH: Duration = Duration::from_secs(60);
/// SCTP receive window, in bytes: bounds the speed at distance.
const RECEIVE_WINDOW: u32 = 4 * 1024 * 1024;
/// How often the transport asks for consent (RFC 7675, section 5.1: every 4 to 6 s).
const CONSENT_INTERVAL: Duration = Duration::from_secs(5);
/// Without any consent for so long the transport doubts a path; [`Liveness`] usually does before.
const DISCONNECTED_TIMEOUT: Duration = Duration::from_secs(15);
/// After so long more it gives the path up (RFC 7675: 30 s in all).
const FAILED_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the last control message may take to leave before the connection is closed.
const CLOSE_GRACE: Duration = Duration::from_millis(200);

/// The four data channels, by the position of their lanes.
type Channels = Arc<[Arc<dyn DataChannel>]>;

/// How links are made on this machine.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// STUN and TURN servers.
    pub ice_servers: Vec<IceServer>,
    /// Use relays only, so that the peer does not learn this machine's addresses (threat T12); needs a TURN server.
    pub relay_only: bool,
    /// Local addresses to use, port 0; none means every interface.
    pub bind: Vec<SocketAddr>,
    /// Ranges of addresses that are reached over links themselves, by their first address and how many bits count: no
    /// link goes through them.
    pub avoid: Vec<(IpAddr, u8)>,
    /// Holds the kernel's socket buffers down, in bytes; for measuring only.
    pub socket_buffer_max: Option<usize>,
    /// Puts every link on a bad wire, both ways.
    pub conditions: Option<Conditions>,
}

/// Returns the receive buffer that the system granted the last link, in bytes.
pub fn granted_receive_buffer() -> Option<usize> {
    crate::sockets::granted_receive_buffer()
}

#[derive(Default)]
struct AtomicCounters {
    sent_packets: AtomicU64,
    sent_bytes: AtomicU64,
    received_packets: AtomicU64,
    received_bytes: AtomicU64,
    malformed: AtomicU64,
}

struct Shared {
    outgoing: Mutex<Outgoing>,
    /// Wakes the task that drains the lanes.
    filled: Notify,
    sink: Arc<dyn Sink>,
    counters: AtomicCounters,
    /// When something passed last, for the library's runtime.
    activity: Arc<Activity>,
    liveness: Mutex<Liveness>,
    origin: Instant,
    open_lanes: AtomicUsize,
    opened: Notify,
    closing: AtomicBool,
    closed: Notify,
    route: AtomicU8,
    ended: AtomicBool,
    repairs: Arc<Repairs>,
}

impl Shared {
    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn liveness(&self) -> MutexGuard<'_, Liveness> {
        self.liveness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Reports the end once.
    fn lose(&self, lost: Lost) {
        if !self.ended.swap(true, Ordering::AcqRel) && !self.closing.load(Ordering::Acquire) {
            debug!(reason = %lost, "link lost");
            self.sink.event(Event::Lost(lost));
        }
        self.closed.notify_waiters();
        self.closed.notify_one();
    }

    /// Finds out and keeps which way packets take.
    async fn find_route(&self, connection: &dyn PeerConnection) {
        let route = route::find(connection).await;
        let relayed = route == Some(Route::Relayed);
        self.activity.relays(relayed);
        self.route.store(route.map_or(0, |_| 1 + u8::from(relayed)), Ordering::Relaxed);
    }

    fn is_relayed(&self) -> bool {
        self.route.load(Ordering::Relaxed) == 2
    }

    fn is_over(&self) -> bool {
        self.ended.load(Ordering::Acquire) || self.closing.load(Ordering::Acquire)
    }
}

/// A link over WebRTC.
pub struct NativeLink {
    shared: Arc<Shared>,
    signals: mpsc::Sender<Signal>,
}

impl NativeLink {
    /// Starts to make a link; what has to reach the peer comes out as [`Event::Signal`].
    pub fn open(config: Config, role: Role, sink: Arc<dyn Sink>) -> Arc<NativeLink> {
        let shared = Arc::new(Shared {
            outgoing: Mutex::new(Outgoing::default()),
            filled: Notify::new(),
            sink,
            counters: AtomicCounters::default(),
            activity: Arc::default(),
            liveness: Mutex::new(Liveness::new(0)),
            origin: Instant::now(),
            open_lanes: AtomicUsize::new(0),
            opened: Notify::new(),
            closing: AtomicBool::new(false),
            closed: Notify::new(),
            route: AtomicU8::new(0),
            ended: AtomicBool::new(false),
            repairs: Arc::default(),
        });
        let (signals, inbox) = mpsc::channel(SIGNALS_MAX);
        let task = negotiate(Arc::clone(&shared), config, role, inbox);
        tokio::spawn(task.instrument(tracing::debug_span!("link")));
        Arc::new(NativeLink { shared, signals })
    }
}

impl Link for NativeLink {
    fn room(&self) -> Room {
        self.shared.outgoing().lanes.room()
    }

    fn send(&self, lane: Lane, packet: &[u8]) -> Result<(), Full> {
        let first = self.shared.outgoing().push(lane, packet)?;
        self.shared.counters.sent_packets.fetch_add(1, Ordering::Relaxed);
        self.shared.counters.sent_bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
        if first {
            self.shared.filled.notify_one();
        }
        Ok(())
    }

    fn send_control(&self, message: &[u8]) -> Result<(), Full> {
        self.shared.outgoing().lanes.push(Lane::Control, message)?;
        self.shared.filled.notify_one();
        Ok(())
    }

    fn handle_signal(&self, signal: Signal) {
        if !signal.is_reasonable() || self.signals.try_send(signal).is_err() {
            debug!("a signal of the peer was dropped: too large or too many");
        }
    }

    fn counters(&self) -> Counters {
        let counters = &self.shared.counters;
        Counters {
            sent_packets: counters.sent_packets.load(Ordering::Relaxed),
            sent_bytes: counters.sent_bytes.load(Ordering::Relaxed),
            received_packets: counters.received_packets.load(Ordering::Relaxed),
            received_bytes: counters.received_bytes.load(Ordering::Relaxed),
            malformed: counters.malformed.load(Ordering::Relaxed),
            repaired: self.shared.repairs.count(),
        }
    }

    fn round_trip_us(&self) -> Option<u64> {
        self.shared.liveness().round_trip_us()
    }

    fn route(&self) -> Option<Route> {
        match self.shared.route.load(Ordering::Relaxed) {
            1 => Some(Route::Direct),
            2 => Some(Route::Relayed),
            _ => None,
        }
    }

    fn doubt(&self) {
        let now = self.shared.now_us();
        self.shared.liveness().doubt(now);
        self.shared.activity.note();
        self.shared.filled.notify_one();
    }

    fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.filled.notify_one();
        self.shared.closed.notify_one();
    }
}

/// What the library reports while two peers find each other.
enum Notice {
    Candidate(Signal),
    State(RTCPeerConnectionState),
}

struct Reporter {
    notices: mpsc::Sender<Notice>,
    relay_only: bool,
    avoid: Vec<(IpAddr, u8)>,
}

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Reporter {
    async fn on_ice_candidate(&self, event: RTCPeerConnectionIceEvent) {
        if let Ok(init) = event.candidate.to_json()
            && !init.candidate.is_empty()
            && !route::is_within(&init.candidate, &self.avoid)
            && let Some(candidate) =
                if self.relay_only { route::conceal(&init.candidate) } else { Some(init.candidate) }
        {
            let candidate = Signal::Candidate { candidate, mid: init.sdp_mid };
            // Bounded: what does not fit is one address fewer to try.
            let _ = self.notices.try_send(Notice::Candidate(candidate));
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        let _ = self.notices.send(Notice::State(state)).await;
    }
}

/// What the library is told about every link.
fn settings(relay_only: bool) -> SettingEngine {
    SettingEngineBuilder::new()
        .with_multicast_dns_mode(MulticastDnsMode::Disabled)
        .with_include_loopback_candidate(true)
        .with_sctp_max_message_size(SctpMaxMessageSize::Bounded(frame::MESSAGE_LEN_MAX as u32))
        .with_sctp_max_receive_buffer_size(RECEIVE_WINDOW)
        .with_ice_connection_attempts(Some(Duration::from_millis(20)), Some(250))
        .with_ice_timeouts(Some(DISCONNECTED_TIMEOUT), Some(FAILED_TIMEOUT), Some(CONSENT_INTERVAL))
        .with_host_acceptance_min_wait(Some(Duration::ZERO))
        .with_srflx_acceptance_min_wait(Some(Duration::from_millis(100)))
        .with_prflx_acceptance_min_wait(Some(Duration::from_millis(100)))
        .with_turn_allocation_refresh_interval_cap(ALLOCATION_REFRESH)
        .with_relay_acceptance_min_wait(Some(if relay_only { Duration::ZERO } else { RELAY_WAIT }))
        // Whoever offers is the client of DTLS, and so the one who opens the SCTP association here. Other stacks open
        // it where they offer, whatever they are in DTLS: two that both wait, or both begin, would not meet.
        .with_answering_dtls_role(RTCDtlsRole::Server)
        .build()
}

/// Makes the connection with its negotiated channels.
async fn connect(
    config: &Config,
    shared: &Shared,
    notices: mpsc::Sender<Notice>,
) -> Result<(Arc<dyn PeerConnection>, Channels), RtcError> {
    let servers = config.ice_servers.iter().map(|server| RTCIceServer {
        urls: vec![server.url.clone()],
        username: server.username.clone(),
        credential: server.credential.clone(),
    });
    let policy = if config.relay_only { RTCIceTransportPolicy::Relay } else { RTCIceTransportPolicy::All };
    let configuration =
        RTCConfigurationBuilder::new().with_ice_servers(servers.collect()).with_ice_transport_policy(policy).build();
    // The library's pauses of 200 ms between checks cost more than all the rest of making a link; a pair
    // is given up after as long as before.
    let settings = settings(config.relay_only);
    let addresses = if config.bind.is_empty() {
        vec![SocketAddr::from(([0, 0, 0, 0], 0)), SocketAddr::from(([0u16; 8], 0))]
    } else {
        config.bind.clone()
    };
    shared.activity.relays(route::has_relay(&config.ice_servers));
    let (conditions, repairs) = (config.conditions, Arc::clone(&shared.repairs));
    let activity = Arc::clone(&shared.activity);
    let wrap = move |socket: Arc<dyn AsyncUdpSocket>| -> Arc<dyn AsyncUdpSocket> {
        let socket = match conditions {
            Some(conditions) => Arc::new(BadWire::new(socket, conditions)),
            None => socket,
        };
        let socket = Arc::new(Repeated::new(socket, Arc::clone(&activity)));
        Arc::new(Repaired::new(socket, Arc::clone(&repairs)))
    };
    let runtime = TunedRuntime::new(config.socket_buffer_max, Arc::clone(&shared.activity)).wrapped(Box::new(wrap));
    let connection = PeerConnectionBuilder::<SocketAddr>::new()
        .with_configuration(configuration)
        .with_setting_engine(settings)
        .with_runtime(Arc::new(runtime))
        .with_handler(Arc::new(Reporter { notices, relay_only: config.relay_only, avoid: config.avoid.clone() }))
        .with_udp_addrs(addresses)
        .with_data_channel_send_buffer_limit(BUDGET_MAX + frame::MESSAGE_LEN_MAX)
        .build()
        .await?;
    let connection: Arc<dyn PeerConnection> = Arc::new(connection);
    let mut channels = Vec::with_capacity(Lane::ALL.len());
    for lane in Lane::ALL {
        let datagram = lane == Lane::Datagram;
        let init = RTCDataChannelInit {
            ordered: !datagram,
            max_retransmits: datagram.then_some(0),
            negotiated: Some(lane.index() as u16),
            ..RTCDataChannelInit::default()
        };
        channels.push(connection.create_data_channel(lane.label(), Some(init)).await?);
    }
    Ok((connection, channels.into()))
}

/// Follows the negotiation until the link ends, then closes everything.
async fn negotiate(shared: Arc<Shared>, config: Config, role: Role, mut inbox: mpsc::Receiver<Signal>) {
    let (notices, mut notice_inbox) = mpsc::channel(4 * signal::CANDIDATES_MAX);
    if config.relay_only && !route::has_relay(&config.ice_servers) {
        return shared.lose(Lost::NoRelay);
    }
    let (connection, channels) = match connect(&config, &shared, notices).await {
        Ok(made) => made,
        Err(error) => {
            debug!(%error, "a connection could not be made");
            return shared.lose(Lost::Setup);
        }
    };
    let mut tasks = tokio::task::JoinSet::new();
    for (lane, channel) in Lane::ALL.into_iter().zip(channels.iter()) {
        tasks.spawn(deliver(Arc::clone(&shared), lane, Arc::clone(channel)).in_current_span());
    }
    tasks.spawn(drain::run(Arc::clone(&shared), channels.clone(), Arc::clone(&connection)).in_current_span());
    let mut negotiation = Negotiation {
        shared: &shared,
        connection: &*connection,
        relay_only: config.relay_only,
        avoid: config.avoid,
        early: Vec::new(),
        candidates: 0,
        described: false,
    };
    let opened = async {
        if role == Role::Offer {
            negotiation.offer().await?;
        }
        negotiation.follow(&mut inbox, &mut notice_inbox).await
    };
    if let Err(lost) = opened.await {
        shared.lose(lost);
    }
    if shared.closing.load(Ordering::Acquire) {
        // Let "bye" leave.
        let _ = timeout(CLOSE_GRACE, flushed(&shared, &channels)).await;
    }
    tasks.shutdown().await;
    let _ = connection.close().await;
    trace!("link closed");
}

/// Waits until nothing is queued or outstanding on the control lane.
async fn flushed(shared: &Shared, channels: &Channels) {
    loop {
        let waits = shared.outgoing().lanes.waits(Lane::Control);
        let outstanding = channels[Lane::Control.index()].outstanding_bytes().await.unwrap_or(0);
        if !waits && outstanding == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn setup(error: &RtcError) -> Lost {
    debug!(%error, "negotiation failed");
    Lost::Setup
}

/// Delivers what arrives on one lane.
async fn deliver(shared: Arc<Shared>, lane: Lane, channel: Arc<dyn DataChannel>) {
    let mut open = false;
    while let Some(event) = channel.poll().await {
        // A message may overtake the news that its channel is open, and then stands for it.
        if !open && matches!(event, DataChannelEvent::OnOpen | DataChannelEvent::OnMessage(_)) {
            open = true;
            lane_opened(&shared);
        }
        match event {
            DataChannelEvent::OnMessage(message) => receive(&shared, lane, &message.data),
            DataChannelEvent::OnBufferedAmountLow => shared.filled.notify_one(),
            DataChannelEvent::OnClose => break,
            _ => {}
        }
    }
    shared.lose(Lost::Transport);
}

fn lane_opened(shared: &Shared) {
    let open = shared.open_lanes.fetch_add(1, Ordering::AcqRel) + 1;
    if open == Lane::ALL.len() {
        let now = shared.now_us();
        shared.liveness().heard(now);
        shared.activity.note();
        shared.sink.event(Event::Opened);
        shared.filled.notify_one();
        shared.opened.notify_one();
    }
}

fn receive(shared: &Shared, lane: Lane, data: &BytesMut) {
    let now = shared.now_us();
    shared.activity.note();
    match lane {
        Lane::Control => {
            shared.liveness().heard(now);
            shared.sink.event(Event::Control(data));
        }
        _ if Probe::is_one(data) => match Probe::parse(data) {
            Some(Probe::Mark(mark)) => {
                shared.liveness().heard(now);
                shared.outgoing().reached(lane, mark);
                shared.filled.notify_one();
            }
            Some(Probe::Ping(number)) => {
                shared.liveness().heard(now);
                shared.outgoing().probe(Probe::Pong(number));
                shared.filled.notify_one();
            }
            Some(Probe::Pong(number)) => {
                let round_trip = shared.liveness().pong(now, number);
                if let Some(round_trip) = round_trip {
                    shared.outgoing().budget.handle_round_trip(now, round_trip);
                    shared.sink.event(Event::RoundTrip);
                }
            }
            // Nothing of this end's was marked: the library says what has arrived.
            Some(Probe::Reached(..)) | None => {
                shared.counters.malformed.fetch_add(1, Ordering::Relaxed);
            }
        },
        Lane::Interactive | Lane::Bulk | Lane::Datagram => {
            shared.liveness().heard(now);
            let (mut count, mut malformed) = (0, 0);
            for packet in frame::packets(data) {
                match packet {
                    Ok(_) => count += 1,
                    Err(_) => malformed += 1,
                }
            }
            shared.counters.received_packets.fetch_add(count, Ordering::Relaxed);
            shared.counters.received_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            shared.counters.malformed.fetch_add(malformed, Ordering::Relaxed);
            shared.sink.event(Event::Packets(data));
        }
    }
}
