//! The conversation with signaling over the page's WebSocket.

use unisockets::core::LookupError;
use unisockets_signaling::identity::PublicKey;
use unisockets_signaling::member::{Event, Failure};
use unisockets_signaling::protocol::{Code, Nonce, Welcome};
use unisockets_stack::Instant;
use wasm_bindgen::prelude::*;

use crate::events::{self, Answer, text};
use crate::{Core, at, refuse};

/// STUN and TURN servers that signaling may name.
const ICE_SERVERS_MAX: usize = 16;
/// A connection on which nothing comes for so long while an answer is due is broken, in microseconds.
const ANSWER_TIMEOUT_US: u64 = 5_000_000;
/// Members of a page of a list.
const LIST_LEN_MAX: usize = 256;

/// Where the WebSocket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Idle,
    /// Made, and perhaps open already.
    Made,
}

/// The page's WebSocket.
#[derive(Debug, Default)]
pub(crate) struct Socket {
    state: State,
    heard_us: u64,
    /// Since when an answer is due.
    asked_us: Option<u64>,
}

#[wasm_bindgen]
impl Core {
    /// Takes a frame of signaling.
    #[wasm_bindgen(js_name = signalingFrame)]
    pub fn signaling_frame(&mut self, now_us: f64, frame: &str) {
        let now = at(now_us);
        let nonce = Nonce::new(self.random());
        self.socket.heard_us = now.as_micros();
        self.membership.handle_frame(now.as_micros() / 1_000, frame, nonce);
        self.settle(now);
    }

    /// Takes the end, or the failure, of the connection to signaling.
    #[wasm_bindgen(js_name = signalingClosed)]
    pub fn signaling_closed(&mut self, now_us: f64) {
        let now = at(now_us);
        self.break_off(now);
        self.settle(now);
    }

    /// Asks for members behind one of them; the answer comes with `Host.answered`, its number is negative.
    #[wasm_bindgen(js_name = listMembers)]
    pub fn list_members(&mut self, now_us: f64, after: Option<String>) -> Result<f64, JsValue> {
        let after = after.map(|key| key.parse::<PublicKey>()).transpose();
        let after = after.map_err(|error| refuse(&error.to_string()))?;
        let question = self.membership.list(after, LIST_LEN_MAX);
        self.settle(at(now_us));
        Ok(-(question as f64))
    }
}

impl Core {
    fn break_off(&mut self, now: Instant) {
        self.socket = Socket::default();
        let random = u64::from_be_bytes(self.random());
        self.membership.handle_closed(now.as_micros() / 1_000, random);
    }

    pub(crate) fn signaling_timeout_us(&self) -> Option<u64> {
        let membership = self.membership.poll_timeout().map(|ms| ms.saturating_mul(1_000));
        let silence = self.socket.asked_us.map(|asked| asked.max(self.socket.heard_us) + ANSWER_TIMEOUT_US);
        [membership, silence].into_iter().flatten().min()
    }

    /// Lets time pass for the conversation with signaling.
    pub(crate) fn signaling_timeout(&mut self, now: Instant) {
        let silence = self.socket.asked_us.map(|asked| asked.max(self.socket.heard_us) + ANSWER_TIMEOUT_US);
        if silence.is_some_and(|due| due <= now.as_micros()) {
            self.host.disconnect();
            return self.break_off(now);
        }
        if !self.membership.handle_timeout(now.as_micros() / 1_000) {
            return;
        }
        match self.socket.state {
            State::Idle => {
                self.socket = Socket { state: State::Made, heard_us: now.as_micros(), asked_us: None };
                self.host.connect();
            }
            State::Made => {
                self.host.disconnect();
                self.break_off(now);
            }
        }
    }

    /// Sends and takes what the conversation brings; returns whether the node learnt something.
    pub(crate) fn converse(&mut self, now: Instant) -> bool {
        let mut busy = false;
        while let Some(event) = self.membership.poll_event() {
            busy = true;
            self.learn(now, event);
        }
        while let Some(frame) = self.membership.poll_frame() {
            self.host.send_frame(&frame);
        }
        if self.membership.is_ended() && self.socket.state == State::Made {
            self.host.disconnect();
            self.socket = Socket::default();
        }
        let owed = self.membership.is_owed_an_answer();
        self.socket.asked_us = self.socket.asked_us.or(Some(now.as_micros())).filter(|_| owed);
        busy
    }

    fn learn(&mut self, now: Instant, event: Event) {
        match event {
            Event::Joined(welcome) => self.joined(now, &welcome),
            Event::Rejected(code, message) => self.rejected(code, &message),
            Event::Disconnected => {
                self.node.signaling_lost();
                self.host.event(&text(&events::Event::Disconnected));
            }
            Event::Resolved(question, answer) => {
                let Some(place) = self.questions.iter().position(|(asked, ..)| *asked == question) else {
                    return;
                };
                let (_, id, query) = self.questions.swap_remove(place);
                let answer = answer.map_err(LookupError::from);
                self.node.resolved(now, id, answer, Some(&query));
            }
            Event::Members(question, answer) => {
                let answer = match answer {
                    Ok(members) => Answer::Members(members),
                    Err(failure) => LookupError::from(failure).into(),
                };
                self.host.answered(-(question as f64), &text(&answer));
            }
            Event::Signal(from, payload) => self.node.handle_signal(now, from, &payload),
            Event::Undelivered { to, failure, .. } if failure.is_not_found() => self.node.undelivered(now, to),
            Event::Undelivered { to, failure: Failure::Refused(Code::TooMuch, _), .. } => self.node.congested(now, to),
            Event::Gone(key, reason) => self.node.peer_gone(now, key, reason),
            Event::Undelivered { .. } | Event::Delivered(_) => {}
        }
    }

    fn rejected(&self, code: Code, message: &str) {
        self.host.event(&text(&events::Event::Rejected { code, message }));
    }

    fn joined(&mut self, now: Instant, welcome: &Welcome) {
        if let Err(text) = self.node.joined(now, welcome) {
            // Nothing of what another server than before says is taken over.
            return self.rejected(Code::BadProof, &text);
        }
        let named = welcome.ice_servers.iter().take(ICE_SERVERS_MAX);
        self.servers = self.own_servers.iter().chain(named).cloned().collect();
        self.membership.watch(&self.node.peer_keys());
        let lease = &welcome.lease.lease;
        self.host.event(&text(&events::Event::Joined {
            key: self.node.key(),
            network: &lease.network,
            name: lease.name.as_deref(),
            ipv4: lease.ipv4,
            ipv6: welcome.ipv6,
        }));
    }
}
