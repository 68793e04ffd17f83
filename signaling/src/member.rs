//! A member's side of the conversation with signaling: joining, asking, resuming. No I/O.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::identity::{KeyPair, PublicKey};
use crate::network::{Network, Prefix, address_v6};
use crate::protocol::{
    self, Code, FromMember, FromServer, GoneReason, Hello, Member, NetworkProof, Nonce, Proven, Query, Welcome,
};

/// Requests that wait for an answer, or, but for payloads, for the next connection.
const REQUESTS_MAX: usize = 1_024;
/// First pause before connecting again, in milliseconds; it doubles up to [`BACKOFF_MAX_MS`].
const BACKOFF_MIN_MS: u64 = 200;
/// See [`BACKOFF_MIN_MS`].
const BACKOFF_MAX_MS: u64 = 15_000;
/// Longest pause between renewals that a server may ask for, in seconds.
const LEASE_S_MAX: u64 = 86_400;
/// How long the server may take to answer a hello, in milliseconds.
const JOIN_TIMEOUT_MS: u64 = 15_000;

/// What a member brings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The network.
    pub network: Arc<Network>,
    /// The member's keys.
    pub pair: KeyPair,
    /// The name it would like.
    pub name: Option<String>,
    /// The IPv4 address it would like.
    pub ipv4: Option<Ipv4Addr>,
    /// Whether the lease is given back on leaving.
    pub ephemeral: bool,
    /// The server's host and port, as in the `Host` header.
    pub host: String,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The server refused.
    Refused(Code, String),
    /// The server's answer contradicts itself: it is broken, or lies.
    Forged,
    /// Too many requests wait.
    Busy,
    /// There is no connection to the server, or it broke before the answer came.
    NotConnected,
}

impl Failure {
    /// Returns whether this is the server's word that there is no such member, and not trouble on the way.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Failure::Refused(Code::NotFound, _))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Refused(_, message) => f.write_str(message),
            Failure::Forged => f.write_str("the signaling server's answer contradicts itself: do not trust it"),
            Failure::Busy => f.write_str("too many requests wait for the signaling server"),
            Failure::NotConnected => f.write_str("not connected to the signaling server"),
        }
    }
}

/// Something that the member learns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It is in; also after a renewal or a reconnection.
    Joined(Box<Welcome>),
    /// It is not let in, and trying again does not help.
    Rejected(Code, String),
    /// The connection is gone; it is being made again.
    Disconnected,
    /// The answer to [`Membership::resolve`].
    Resolved(u64, Result<Member, Failure>),
    /// The answer to [`Membership::list`].
    Members(u64, Result<Vec<Member>, Failure>),
    /// Another member's payload.
    Signal(PublicKey, String),
    /// A payload was handed on.
    Delivered(u64),
    /// A payload was not handed on; only with [`Failure::is_not_found`] because its recipient is not there.
    Undelivered {
        /// The number that [`Membership::signal`] gave.
        id: u64,
        /// Who should have had it.
        to: PublicKey,
        /// Why not.
        failure: Failure,
    },
    /// A watched member is gone.
    Gone(PublicKey, GoneReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not connected; the next attempt is due then.
    Waiting {
        until_ms: u64,
    },
    /// The shell is connecting, or the challenge has not come.
    Connecting {
        deadline_ms: u64,
    },
    Joining {
        deadline_ms: u64,
    },
    Joined {
        renew_at_ms: u64,
    },
    Ended,
}

/// What a member had last, and asks for when it comes back.
#[derive(Debug, Clone, Default)]
struct Former {
    ipv4: Option<Ipv4Addr>,
    name: Option<String>,
}

/// A member's conversation with signaling.
pub struct Membership {
    config: Config,
    state: State,
    attempts: u32,
    resume: Option<Nonce>,
    welcome: Option<Box<Welcome>>,
    former: Former,
    next_id: u64,
    requests: BTreeMap<u64, FromMember>,
    frames: VecDeque<String>,
    events: VecDeque<Event>,
}

impl Membership {
    /// Starts outside; the first connection is wanted at once.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            state: State::Waiting { until_ms: 0 },
            attempts: 0,
            resume: None,
            welcome: None,
            former: Former::default(),
            next_id: 0,
            requests: BTreeMap::new(),
            frames: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Returns the last welcome.
    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_deref()
    }

    /// Returns whether the member is connected and let in.
    pub fn is_joined(&self) -> bool {
        matches!(self.state, State::Joined { .. })
    }

    /// Returns whether the conversation is over for good.
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Returns whether the server has requests of this connection that it has not answered.
    pub fn is_owed_an_answer(&self) -> bool {
        self.is_joined() && !self.requests.is_empty()
    }

    /// Returns the next frame to send.
    pub fn poll_frame(&mut self) -> Option<String> {
        self.frames.pop_front()
    }

    /// Returns the next thing learnt.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns when [`Membership::handle_timeout`] is due, in milliseconds.
    pub fn poll_timeout(&self) -> Option<u64> {
        match self.state {
            State::Waiting { until_ms } => Some(until_ms),
            State::Connecting { deadline_ms } | State::Joining { deadline_ms } => Some(deadline_ms),
            State::Joined { renew_at_ms } => Some(renew_at_ms),
            State::Ended => None,
        }
    }

    /// Lets time pass; returns whether the shell should drop its connection, if any, and make a new one.
    pub fn handle_timeout(&mut self, now_ms: u64) -> bool {
        match self.state {
            State::Waiting { until_ms } if until_ms <= now_ms => {
                self.state = State::Connecting { deadline_ms: now_ms + JOIN_TIMEOUT_MS };
                true
            }
            State::Connecting { deadline_ms } | State::Joining { deadline_ms } if deadline_ms <= now_ms => {
                self.state = State::Connecting { deadline_ms: now_ms + JOIN_TIMEOUT_MS };
                true
            }
            State::Joined { renew_at_ms } if renew_at_ms <= now_ms => {
                self.state = State::Joined { renew_at_ms: now_ms + JOIN_TIMEOUT_MS };
                self.push(&FromMember::Renew);
                false
            }
            _ => false,
        }
    }

    /// Takes the end, or the failure, of the connection; `random` spreads the next attempts of many members.
    pub fn handle_closed(&mut self, now_ms: u64, random: u64) {
        if self.state == State::Ended {
            return;
        }
        // A server that asked for patience gets it.
        let patience_ms = match self.state {
            State::Waiting { until_ms } => until_ms,
            _ => 0,
        };
        if matches!(self.state, State::Joined { .. }) {
            self.events.push_back(Event::Disconnected);
            self.attempts = 0;
        }
        self.frames.clear();
        self.lose_signals();
        let ceiling = (BACKOFF_MIN_MS << self.attempts.min(10)).min(BACKOFF_MAX_MS);
        self.attempts += 1;
        self.wait((now_ms + ceiling / 2 + random % (ceiling / 2 + 1)).max(patience_ms));
    }

    /// Reports payloads that wait for an answer as undelivered: an introduction is stale by the next connection.
    fn lose_signals(&mut self) {
        let is_signal = |message: &FromMember| matches!(message, FromMember::Signal { .. });
        let lost: Vec<u64> =
            self.requests.iter().filter(|(_, message)| is_signal(message)).map(|(id, _)| *id).collect();
        for id in lost {
            self.failed(id, Failure::NotConnected);
        }
    }

    fn wait(&mut self, until_ms: u64) {
        self.state = State::Waiting { until_ms };
    }

    fn push(&mut self, message: &FromMember) {
        self.frames.push_back(protocol::emit(message));
    }

    /// Takes a frame; `nonce` is random. Frames that are no messages are ignored.
    pub fn handle_frame(&mut self, now_ms: u64, frame: &str, nonce: Nonce) {
        if self.state == State::Ended {
            return;
        }
        let Ok(message) = protocol::parse::<FromServer>(frame) else {
            tracing::debug!("the signaling server sent a frame that is no message");
            return;
        };
        match message {
            FromServer::Challenge { nonce: server_nonce } if matches!(self.state, State::Connecting { .. }) => {
                self.state = State::Joining { deadline_ms: now_ms + JOIN_TIMEOUT_MS };
                let hello = self.hello(&server_nonce, nonce);
                self.push(&FromMember::Hello(Box::new(hello)));
            }
            FromServer::Challenge { .. } => {}
            FromServer::Welcome(welcome) if matches!(self.state, State::Joining { .. } | State::Joined { .. }) => {
                self.welcomed(now_ms, welcome);
            }
            FromServer::Welcome(_) => {}
            FromServer::Resolved { id, member } => self.resolved(id, member),
            FromServer::Members { id, members } => {
                if let Some(FromMember::List { .. }) = self.requests.remove(&id) {
                    let true_ones = members.iter().all(|member| self.is_true(member));
                    let result = if true_ones { Ok(members) } else { Err(Failure::Forged) };
                    self.events.push_back(Event::Members(id, result));
                }
            }
            FromServer::Signal { from, payload } => self.events.push_back(Event::Signal(from, payload)),
            FromServer::Delivered { id } => {
                if let Some(FromMember::Signal { .. }) = self.requests.remove(&id) {
                    self.events.push_back(Event::Delivered(id));
                }
            }
            FromServer::Refused { id: Some(id), code, message, .. } => self.failed(id, Failure::Refused(code, message)),
            FromServer::Refused { id: None, code, message, retry_after_ms } => {
                self.refused(now_ms, code, message, retry_after_ms);
            }
            FromServer::Gone { key, reason } => self.events.push_back(Event::Gone(key, reason)),
            FromServer::Draining { retry_after_ms } => {
                if matches!(self.state, State::Joined { .. }) {
                    self.events.push_back(Event::Disconnected);
                }
                self.attempts = 0;
                self.lose_signals();
                self.wait(now_ms + retry_after_ms.min(BACKOFF_MAX_MS));
            }
        }
    }

    fn hello(&self, server_nonce: &Nonce, nonce: Nonce) -> Hello {
        let config = &self.config;
        let key = config.pair.public();
        let network = config.network.id();
        let proven = Proven { host: &config.host, network, key: &key, server_nonce, nonce: &nonce };
        let network_proof =
            config.network.signing().map(|pair| NetworkProof { key: pair.public(), signature: proven.sign(pair) });
        Hello {
            protocol: protocol::VERSION,
            network: network.to_owned(),
            key,
            name: config.name.clone().or_else(|| self.former.name.clone()),
            ipv4: config.ipv4.or(self.former.ipv4),
            ephemeral: config.ephemeral,
            resume: self.resume,
            proof: proven.sign(&config.pair),
            nonce,
            network_proof,
        }
    }

    fn welcomed(&mut self, now_ms: u64, welcome: Box<Welcome>) {
        let (lease, id) = (&welcome.lease.lease, self.config.network.id());
        let own = lease.key == self.config.pair.public() && lease.network == id;
        if !own
            || !holds(&welcome.prefixes, lease.ipv4)
            || !welcome.lease.is_signed()
            || welcome.ipv6 != address_v6(id, &lease.key)
        {
            self.state = State::Ended;
            self.events.push_back(Event::Rejected(Code::BadProof, Failure::Forged.to_string()));
            return;
        }
        let was_joined = matches!(self.state, State::Joined { .. });
        self.attempts = 0;
        self.resume = Some(welcome.resume);
        self.state = State::Joined { renew_at_ms: now_ms + welcome.lease_s.clamp(1, LEASE_S_MAX) * 1_000 };
        self.former = Former { ipv4: Some(lease.ipv4), name: lease.name.clone() };
        self.welcome = Some(welcome.clone());
        self.events.push_back(Event::Joined(welcome));
        if !was_joined && !planted!(QuestionsForgotten) {
            // What was asked before the connection broke is asked again.
            let frames: Vec<String> = self.requests.values().map(protocol::emit).collect();
            self.frames.extend(frames);
        }
    }

    fn refused(&mut self, now_ms: u64, code: Code, message: String, retry_after_ms: Option<u64>) {
        // A server that is crowded says so before any challenge.
        let is_crowded = matches!(self.state, State::Connecting { .. }) && code.is_transient();
        if !is_crowded && !matches!(self.state, State::Joining { .. }) {
            tracing::debug!(?code, %message, "the signaling server refused something");
            return;
        }
        // In use may pass when the other session ends; with a resume token it is our own old one.
        if code.is_transient() || (code == Code::InUse && self.resume.is_some()) {
            self.wait(now_ms + retry_after_ms.unwrap_or(1_000).min(BACKOFF_MAX_MS));
        } else if self.forgoes(code) {
            self.wait(now_ms);
        } else {
            self.state = State::Ended;
            self.events.push_back(Event::Rejected(code, message));
        }
    }

    /// Gives up what it had last and nobody configured, if another member has it now; returns whether it did.
    fn forgoes(&mut self, code: Code) -> bool {
        match code {
            Code::AddressTaken if self.config.ipv4.is_none() => self.former.ipv4.take().is_some(),
            Code::NameTaken if self.config.name.is_none() => self.former.name.take().is_some(),
            _ => false,
        }
    }

    /// A member's IPv6 address is derived from its key, whatever the server says (threat T1).
    fn is_true(&self, member: &Member) -> bool {
        member.ipv6 == address_v6(self.config.network.id(), &member.key)
    }

    fn resolved(&mut self, id: u64, member: Member) {
        let Some(FromMember::Resolve { query, .. }) = self.requests.remove(&id) else {
            return;
        };
        let is_ours = self.welcome.as_ref().is_some_and(|welcome| holds(&welcome.prefixes, member.ipv4));
        let answers = match &query {
            Query::Key(key) => member.key == *key,
            Query::Name(name) => member.name.as_ref() == Some(name),
            Query::Ip(IpAddr::V4(address)) => member.ipv4 == *address,
            Query::Ip(IpAddr::V6(address)) => member.ipv6 == *address,
        };
        let result = if answers && is_ours && self.is_true(&member) { Ok(member) } else { Err(Failure::Forged) };
        self.events.push_back(Event::Resolved(id, result));
    }

    fn failed(&mut self, id: u64, failure: Failure) {
        self.events.extend(match self.requests.remove(&id) {
            Some(FromMember::Resolve { .. }) => Some(Event::Resolved(id, Err(failure))),
            Some(FromMember::List { .. }) => Some(Event::Members(id, Err(failure))),
            Some(FromMember::Signal { to, .. }) => Some(Event::Undelivered { id, to, failure }),
            _ => None,
        });
    }

    fn request(&mut self, make: impl FnOnce(u64) -> FromMember) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        let message = make(id);
        let frame = protocol::emit(&message);
        let failure = if frame.len() > protocol::FRAME_LEN_MAX {
            // The server would close the connection for it, again and again.
            Some(Failure::Refused(Code::TooMuch, "the payload is too long for a frame".to_owned()))
        } else if matches!(message, FromMember::Signal { .. }) && !self.is_joined() {
            Some(Failure::NotConnected)
        } else if self.requests.len() >= REQUESTS_MAX {
            Some(Failure::Busy)
        } else {
            None
        };
        if failure.is_none() && self.is_joined() {
            self.frames.push_back(frame);
        }
        self.requests.insert(id, message);
        if let Some(failure) = failure {
            self.failed(id, failure);
        }
        id
    }

    /// Asks who has an address, a name or a key; [`Event::Resolved`] brings the answer.
    pub fn resolve(&mut self, query: Query) -> u64 {
        self.request(|id| FromMember::Resolve { id, query })
    }

    /// Asks for a page of members; [`Event::Members`] brings it.
    pub fn list(&mut self, after: Option<PublicKey>, limit: usize) -> u64 {
        self.request(|id| FromMember::List { id, after, limit })
    }

    /// Withdraws a question: its answer is not waited for any more, and it is not asked again.
    pub fn withdraw(&mut self, id: u64) {
        self.requests.remove(&id);
    }

    /// Sends a payload to a member, over this connection or not at all.
    pub fn signal(&mut self, to: PublicKey, payload: String) -> u64 {
        self.request(|id| FromMember::Signal { id, to, payload })
    }

    /// Asks to be told when members go; after a reconnection it has to be asked again.
    pub fn watch(&mut self, keys: &[PublicKey]) {
        if self.is_joined() {
            for keys in keys.chunks(protocol::WATCH_LEN_MAX) {
                self.push(&FromMember::Watch { keys: keys.to_vec() });
            }
        }
    }

    /// Leaves for good: the frame is the last one.
    pub fn leave(&mut self) {
        if self.is_joined() {
            self.push(&FromMember::Leave);
        }
        self.state = State::Ended;
    }
}

/// Whether a network leases an address: a server must not give out what is somebody else's (threat T1).
fn holds(prefixes: &[Prefix], address: Ipv4Addr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(address.into()))
}
