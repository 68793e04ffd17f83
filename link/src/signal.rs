//! What two ends of a link tell each other before it exists, and who makes the offer.

use serde::{Deserialize, Serialize};

/// Candidates that one end may send; more is no honest peer (threat T8).
pub const CANDIDATES_MAX: usize = 32;
/// Largest session description, in bytes.
pub const DESCRIPTION_LEN_MAX: usize = 16 * 1024;

/// A message of the negotiation (RFC 8829), carried by whoever introduces the peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", try_from = "Fields")]
pub enum Signal {
    /// The description that opens the negotiation.
    Offer {
        /// The session description (RFC 8866).
        sdp: String,
    },
    /// The description that accepts it.
    Answer {
        /// The session description (RFC 8866).
        sdp: String,
    },
    /// One more address to try (RFC 8838).
    Candidate {
        /// The candidate's attribute (RFC 8839, section 5.1).
        candidate: String,
        /// The media section that it belongs to.
        mid: Option<String>,
    },
}

/// The fields of every kind of message. Reading them into one structure, and not each kind into its own, spares the
/// module of the browser the buffers that serde keeps until it has seen the tag.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    kind: Kind,
    sdp: Option<String>,
    candidate: Option<String>,
    mid: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Offer,
    Answer,
    Candidate,
}

impl TryFrom<Fields> for Signal {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        let Fields { kind, sdp, candidate, mid } = fields;
        match (kind, sdp, candidate, mid) {
            (Kind::Offer, Some(sdp), None, None) => Ok(Signal::Offer { sdp }),
            (Kind::Answer, Some(sdp), None, None) => Ok(Signal::Answer { sdp }),
            (Kind::Candidate, None, Some(candidate), mid) => Ok(Signal::Candidate { candidate, mid }),
            (Kind::Offer | Kind::Answer, ..) => Err("an offer and an answer have 'sdp', and nothing else"),
            (Kind::Candidate, ..) => Err("a candidate has 'candidate' and 'mid', and nothing else"),
        }
    }
}

impl Signal {
    /// Takes the candidates out of a description: they come one by one, so that they can be counted and looked at
    /// (threat T8).
    #[must_use]
    pub fn bare(self) -> Signal {
        match self {
            Signal::Offer { sdp } => Signal::Offer { sdp: without_candidates(&sdp) },
            Signal::Answer { sdp } => Signal::Answer { sdp: without_candidates(&sdp) },
            candidate @ Signal::Candidate { .. } => candidate,
        }
    }

    /// Returns whether the sizes are such as an honest peer sends.
    pub fn is_reasonable(&self) -> bool {
        match self {
            Signal::Offer { sdp } | Signal::Answer { sdp } => sdp.len() <= DESCRIPTION_LEN_MAX,
            Signal::Candidate { candidate, mid } => {
                candidate.len() <= 512 && mid.as_ref().is_none_or(|mid| mid.len() <= 32)
            }
        }
    }
}

/// Returns a description without candidates, and without the word that there are no more: those that follow one by one
/// would come too late for it. Its lines end as RFC 8866 wants them, whatever they ended with.
pub(crate) fn without_candidates(sdp: &str) -> String {
    let stays = |line: &&str| !["", "a=end-of-candidates"].contains(line) && !line.starts_with("a=candidate");
    let lines = sdp.split(['\r', '\n']).filter(stays);
    lines.fold(String::new(), |text, line| text + line + "\r\n")
}

/// Which end makes the offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// This end offers.
    Offer,
    /// The other end offers; its offer is handed to [`crate::Link::handle_signal`].
    Answer,
}

/// Who yields when both ends offered at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Glare {
    /// Our offer stands; the other's is ignored.
    Keep,
    /// We drop our offer and answer the other's.
    Yield,
}

/// Decides between two offers that crossed: the offer of the lower key stands.
pub fn glare(own_key: &[u8], peer_key: &[u8]) -> Glare {
    if own_key < peer_key { Glare::Keep } else { Glare::Yield }
}

/// A STUN or TURN server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IceServer {
    /// `stun:HOST:PORT` or `turn:HOST:PORT?transport=udp` (RFC 7064, RFC 7065).
    pub url: String,
    /// User of a TURN server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Password of a TURN server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub credential: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_loses_its_candidates_only() {
        let line = "a=candidate:1 1 udp 1 10.0.0.1 1 typ host";
        for end in ["\r\n", "\n", "\r"] {
            let sdp = format!("v=0{end}{line}{end}a=x{end}{line}{end}a=end-of-candidates{end}");
            assert_eq!(Signal::Offer { sdp }.bare(), Signal::Offer { sdp: "v=0\r\na=x\r\n".to_owned() });
        }
    }

    #[test]
    fn exactly_one_of_two_crossing_offers_stands() {
        assert_eq!((glare(b"a", b"b"), glare(b"b", b"a")), (Glare::Keep, Glare::Yield));
    }

    #[test]
    fn signals_read_back_and_unknown_fields_are_refused() {
        let signal = Signal::Candidate { candidate: "candidate:1".into(), mid: Some("0".into()) };
        let text = serde_json::to_string(&signal).unwrap();
        assert_eq!(serde_json::from_str::<Signal>(&text).unwrap(), signal);
        let bad = [
            r#"{"kind":"offer","sdp":"","x":1}"#,
            r#"{"kind":"offer"}"#,
            r#"{"kind":"answer","sdp":"","candidate":"c"}"#,
            r#"{"kind":"candidate","mid":"0"}"#,
            r#"{"kind":"sideways","sdp":""}"#,
            r#"{"sdp":""}"#,
        ];
        for text in bad {
            assert!(serde_json::from_str::<Signal>(text).is_err(), "{text}");
        }
    }
}
