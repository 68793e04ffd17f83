//! The life of a connection's negotiation: offers, answers, candidates, and what the library says of them.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tracing::debug;
use webrtc::peer_connection::{PeerConnection, RTCIceCandidateInit, RTCPeerConnectionState, RTCSessionDescription};

use super::{Notice, OPEN_TIMEOUT, Shared, repaired, route, setup};
use crate::lanes::Lane;
use crate::signal::{self, Signal};
use crate::{Event, Lost};

pub(super) struct Negotiation<'a> {
    pub(super) shared: &'a Shared,
    pub(super) connection: &'a dyn PeerConnection,
    pub(super) relay_only: bool,
    pub(super) avoid: Vec<(IpAddr, u8)>,
    /// Candidates that came before the description.
    pub(super) early: Vec<RTCIceCandidateInit>,
    /// Candidates of the peer that were taken in all: each is an address that checks are sent to (threat T8).
    pub(super) candidates: usize,
    pub(super) described: bool,
}

impl Negotiation<'_> {
    pub(super) async fn offer(&mut self) -> Result<(), Lost> {
        let offer = self.connection.create_offer(None).await.map_err(|error| setup(&error))?;
        let sdp = self.shown(&offer);
        // The signal leaves before gathering begins, so that candidates follow their offer.
        self.shared.sink.event(Event::Signal(Signal::Offer { sdp }));
        self.connection.set_local_description(offer).await.map_err(|error| setup(&error))
    }

    /// Returns a description as the peer may see it.
    fn shown(&self, description: &RTCSessionDescription) -> String {
        let sdp = repaired::offered(&description.sdp);
        if self.relay_only { signal::without_candidates(&sdp) } else { sdp }
    }

    pub(super) async fn follow(
        &mut self,
        inbox: &mut mpsc::Receiver<Signal>,
        notices: &mut mpsc::Receiver<Notice>,
    ) -> Result<(), Lost> {
        let deadline = tokio::time::Instant::now() + OPEN_TIMEOUT;
        let mut sent_candidates = 0;
        loop {
            let open = self.shared.open_lanes.load(Ordering::Acquire) == Lane::ALL.len();
            tokio::select! {
                () = self.shared.closed.notified() => return Ok(()),
                () = self.shared.opened.notified() => {}
                Some(signal) = inbox.recv() => self.take(signal).await?,
                Some(notice) = notices.recv() => match notice {
                    Notice::Candidate(candidate) if sent_candidates < signal::CANDIDATES_MAX => {
                        sent_candidates += 1;
                        self.shared.sink.event(Event::Signal(candidate));
                    }
                    Notice::Candidate(_) => {}
                    Notice::State(state) => self.state(state)?,
                },
                () = sleep_until(deadline), if !open => return Err(Lost::NoPath),
            }
        }
    }

    fn state(&self, state: RTCPeerConnectionState) -> Result<(), Lost> {
        debug!(%state, "connection");
        match state {
            RTCPeerConnectionState::Failed => Err(Lost::NoPath),
            RTCPeerConnectionState::Closed => Err(Lost::Transport),
            _ => Ok(()),
        }
    }

    async fn take(&mut self, signal: Signal) -> Result<(), Lost> {
        if let Signal::Offer { sdp } | Signal::Answer { sdp } = &signal {
            self.shared.repairs.agree(repaired::is_offered(sdp));
        }
        match signal.bare() {
            Signal::Offer { sdp } => {
                let description = RTCSessionDescription::offer(sdp).map_err(|error| setup(&error))?;
                self.connection.set_remote_description(description).await.map_err(|error| setup(&error))?;
                self.described().await;
                let answer = self.connection.create_answer(None).await.map_err(|error| setup(&error))?;
                let sdp = self.shown(&answer);
                self.shared.sink.event(Event::Signal(Signal::Answer { sdp }));
                self.connection.set_local_description(answer).await.map_err(|error| setup(&error))
            }
            Signal::Answer { sdp } => {
                let description = RTCSessionDescription::answer(sdp).map_err(|error| setup(&error))?;
                self.connection.set_remote_description(description).await.map_err(|error| setup(&error))?;
                self.described().await;
                Ok(())
            }
            Signal::Candidate { .. } if self.candidates >= signal::CANDIDATES_MAX => {
                debug!("a candidate of the peer was dropped: too many");
                Ok(())
            }
            Signal::Candidate { candidate, .. } if route::is_within(&candidate, &self.avoid) => {
                debug!("a candidate of the peer was dropped: it is an address of the network itself");
                Ok(())
            }
            Signal::Candidate { candidate, mid } => {
                self.candidates += 1;
                let init = RTCIceCandidateInit { candidate, sdp_mid: mid, ..RTCIceCandidateInit::default() };
                if self.described {
                    self.try_candidate(init).await;
                } else {
                    self.early.push(init);
                }
                Ok(())
            }
        }
    }

    async fn described(&mut self) {
        self.described = true;
        for candidate in std::mem::take(&mut self.early) {
            self.try_candidate(candidate).await;
        }
    }

    /// A candidate that the library does not understand is one address fewer to try, no more.
    async fn try_candidate(&self, candidate: RTCIceCandidateInit) {
        if let Err(error) = self.connection.add_ice_candidate(candidate).await {
            debug!(%error, "a candidate of the peer was not usable");
        }
        // It may say that the address in use is a relay's.
        if self.shared.route.load(Ordering::Relaxed) != 0 {
            self.shared.find_route(self.connection).await;
        }
    }
}
