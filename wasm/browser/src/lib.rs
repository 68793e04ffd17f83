//! The node of a browser tab: the cores of stack, link and signaling, and what carries out their outputs.
//!
//! What only JavaScript can do, sockets, timers, randomness and storage, it does for this module: it is the [`Host`], and
//! tells the time, in microseconds, with every call.

mod capture;
mod events;
mod http;
mod links;
mod membership;
mod sockets;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use unisockets::core::{LinkId, NodeCore, Output};
use unisockets_link::Role;
use unisockets_signaling::identity::{KeyPair, digest};
use unisockets_signaling::member::{self, Membership};
use unisockets_signaling::network::{BadName, Network, parse_member_name, parse_name};
use unisockets_signaling::pins::Pins;
use unisockets_signaling::protocol::{IceServer, Query};
use unisockets_stack::Instant;
use wasm_bindgen::prelude::*;

use crate::events::{Answer, Event, text};
use crate::links::Link;
use crate::membership::Socket;
use crate::sockets::Sockets;

#[wasm_bindgen]
extern "C" {
    /// What the page does for its node. None of these may call the node before it returns.
    pub type Host;

    /// Makes a peer connection with its four channels.
    #[wasm_bindgen(method, js_name = openLink)]
    fn open_link(this: &Host, link: f64, offers: bool, ice_servers: &str);
    /// Hands a signal of the peer to the connection.
    #[wasm_bindgen(method)]
    fn negotiate(this: &Host, link: f64, signal: &str);
    /// Sends a message on a channel; returns whether the channel took it.
    #[wasm_bindgen(method, js_name = sendMessage)]
    fn send_message(this: &Host, link: f64, lane: u8, message: &[u8]) -> bool;
    /// Tells the bytes that the four channels have buffered.
    #[wasm_bindgen(method)]
    fn buffered(this: &Host, link: f64) -> Vec<u32>;
    /// Calls back when no more than so many bytes are buffered in a channel.
    #[wasm_bindgen(method)]
    fn watch(this: &Host, link: f64, lane: u8, bytes: u32);
    /// Closes a connection.
    #[wasm_bindgen(method, js_name = closeLink)]
    fn close_link(this: &Host, link: f64);
    /// Connects to signaling.
    #[wasm_bindgen(method)]
    fn connect(this: &Host);
    /// Sends a frame to signaling.
    #[wasm_bindgen(method, js_name = sendFrame)]
    fn send_frame(this: &Host, frame: &str);
    /// Closes the connection to signaling.
    #[wasm_bindgen(method)]
    fn disconnect(this: &Host);
    /// A socket may have become readable or writable.
    #[wasm_bindgen(method)]
    fn ready(this: &Host, socket: u32, read: bool, write: bool);
    /// The answer to a question.
    #[wasm_bindgen(method)]
    fn answered(this: &Host, question: f64, answer: &str);
    /// Something was learnt about the membership.
    #[wasm_bindgen(method)]
    fn event(this: &Host, event: &str);
}

/// What a page says about the node that it wants.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Settings {
    network: String,
    secret: Option<String>,
    name: Option<String>,
    /// Host and port of the signaling server, as in the `Host` header.
    host: String,
    ephemeral: bool,
    /// Milliseconds since 1970 when the clock was zero.
    origin_unix_ms: u64,
    pins: Option<Pins>,
    #[serde(default)]
    ice_servers: Vec<IceServer>,
}

/// A member of a network, in a page.
#[wasm_bindgen]
pub struct Core {
    node: NodeCore,
    membership: Membership,
    host: Host,
    socket: Socket,
    links: BTreeMap<LinkId, Link>,
    sockets: Sockets,
    /// What signaling was asked: its number there, that of the node, and who is wanted. There are few at one time.
    questions: Vec<(u64, u64, Query)>,
    /// Servers of the page's own settings, and those with signaling's.
    own_servers: Vec<IceServer>,
    servers: Vec<IceServer>,
    seed: [u8; 32],
    drawn: u64,
}

/// Turns a text into what JavaScript throws, with a code as Node.js has them.
fn fail(code: &str, text: &str) -> JsValue {
    let error = js_sys::Error::new(text);
    let _ = js_sys::Reflect::set(&error, &"code".into(), &code.into());
    error.into()
}

fn refuse(text: &str) -> JsValue {
    fail("EINVAL", text)
}

/// Reads the microseconds that a call brings.
fn at(now_us: f64) -> Instant {
    Instant::from_micros(now_us as u64)
}

fn bytes_of(name: &str, bytes: &[u8]) -> Result<[u8; 32], JsValue> {
    bytes.try_into().map_err(|_| refuse(&format!("{name} has 32 bytes, not {}", bytes.len())))
}

#[wasm_bindgen]
impl Core {
    /// Makes a member that begins to join with its first `timeout`. `key` is its secret key, `seed` is random.
    #[wasm_bindgen(constructor)]
    pub fn new(host: Host, settings: &str, key: &[u8], seed: &[u8]) -> Result<Core, JsValue> {
        let settings: Settings = serde_json::from_str(settings).map_err(|error| refuse(&error.to_string()))?;
        let checked = |check: fn(&str) -> Result<String, BadName>, name: &str| {
            check(name).map_err(|error| refuse(&format!("'{name}': {error}")))
        };
        let name = settings.name.as_deref().map(|name| checked(parse_member_name, name)).transpose()?;
        let network = checked(parse_name, &settings.network)?;
        let network = Network::new(&network, settings.secret.as_deref()).map_err(|error| refuse(&error.to_string()))?;
        let network = Arc::new(network);
        let (pair, seed) = (KeyPair::from_seed(&bytes_of("a key", key)?), bytes_of("a seed", seed)?);
        let node = NodeCore::new(unisockets::core::Config {
            network: Arc::clone(&network),
            pair: pair.clone(),
            seed,
            origin_unix_ms: settings.origin_unix_ms,
            pins: settings.pins.unwrap_or_default(),
            host: settings.host.clone(),
        });
        let membership = Membership::new(member::Config {
            network,
            pair,
            name,
            ipv4: None,
            ephemeral: settings.ephemeral,
            host: settings.host,
        });
        Ok(Core {
            node,
            membership,
            host,
            socket: Socket::default(),
            links: BTreeMap::new(),
            sockets: Sockets::default(),
            questions: Vec::new(),
            servers: settings.ice_servers.clone(),
            own_servers: settings.ice_servers,
            seed: digest("unisockets-page-v1", &[&seed]),
            drawn: 0,
        })
    }

    /// Returns when `timeout` is due, in microseconds; infinity if nothing is.
    #[wasm_bindgen(js_name = nextTimeout)]
    pub fn next_timeout(&self) -> f64 {
        let node = self.node.poll_timeout().map(Instant::as_micros);
        let links = self.links.values().filter_map(Link::poll_timeout_us).min();
        let signaling = self.signaling_timeout_us();
        [node, links, signaling].into_iter().flatten().min().map_or(f64::INFINITY, |due| due as f64)
    }

    /// Lets time pass.
    pub fn timeout(&mut self, now_us: f64, unix_ms: f64) {
        let now = at(now_us);
        // The page's clock stands still while the machine sleeps; the calendar does not.
        self.node.set_calendar(now, unix_ms as u64);
        self.node.handle_timeout(now);
        self.let_links_rest(now);
        self.signaling_timeout(now);
        self.settle(now);
    }

    /// Asks who has a name, an address or a key; the answer comes with `Host.answered`.
    pub fn resolve(&mut self, now_us: f64, host: &str) -> f64 {
        let query = Query::parse(host, self.node.network());
        let question = self.node.lookup(query);
        self.settle(at(now_us));
        question as f64
    }

    /// Withdraws a question whose answer nobody waits for any more.
    pub fn withdraw(&mut self, number: f64) {
        if number < 0.0 {
            return self.membership.withdraw(-number as u64);
        }
        let id = number as u64;
        self.node.abandon_lookup(id);
        if let Some(place) = self.questions.iter().position(|(_, asks, _)| *asks == id) {
            let (question, ..) = self.questions.swap_remove(place);
            self.membership.withdraw(question);
        }
    }

    /// Describes the node, its peers and its sockets, as a text in JSON.
    pub fn status(&self, now_us: f64) -> String {
        text(&self.node.status(at(now_us)))
    }

    /// Leaves the network: peers and signaling are told.
    pub fn leave(&mut self, now_us: f64) {
        let now = at(now_us);
        self.node.leave(now);
        self.membership.leave();
        self.settle(now);
    }

    /// Lets no connection take more bytes; returns how many still have something to deliver.
    pub fn finish(&mut self) -> usize {
        self.node.stack.finish();
        self.node.stack.undelivered_count()
    }
}

impl Core {
    pub(crate) fn random<const N: usize>(&mut self) -> [u8; N] {
        self.drawn += 1;
        let drawn = digest("unisockets-page-v1", &[&self.seed, &self.drawn.to_be_bytes()]);
        drawn[..N].try_into().expect("at most 32 bytes are drawn at a time")
    }

    /// Moves every packet, frame and signal that follows from a call, then says which sockets became ready.
    pub(crate) fn settle(&mut self, now: Instant) {
        loop {
            self.node.pump(now);
            let mut busy = self.carry_out(now);
            busy |= self.converse(now);
            busy |= self.serve_links(now);
            if !busy {
                break;
            }
        }
        let mut ready = Vec::new();
        self.node.take_ready(&mut ready);
        for socket in ready {
            self.announce(socket);
        }
        if self.node.pins.take_changed() {
            self.host.event(&text(&Event::Pins { pins: &self.node.pins }));
        }
    }

    fn carry_out(&mut self, now: Instant) -> bool {
        let mut busy = false;
        while let Some(output) = self.node.poll_output() {
            busy = true;
            match output {
                Output::OpenLink { link, role } => {
                    let made = Link::new(now);
                    self.node.link_made(link, made.shared());
                    self.links.insert(link, made);
                    let servers = text(&self.servers);
                    self.host.open_link(link.0 as f64, role == Role::Offer, &servers);
                }
                Output::Resolve { id, query } => {
                    let question = self.membership.resolve(query.clone());
                    self.questions.push((question, id, query));
                }
                Output::Signal { to, payload } => {
                    self.membership.signal(to, payload);
                }
                _ => {}
            }
        }
        while let Some((id, answer)) = self.node.poll_answer() {
            let answer = match answer {
                Ok(member) => Answer::Member(member),
                Err(error) => error.into(),
            };
            self.host.answered(id as f64, &text(&answer));
        }
        busy
    }
}
