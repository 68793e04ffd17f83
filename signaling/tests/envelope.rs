//! Envelopes from members that lie about time.

use unisockets_signaling::envelope::{Content, Freshness, Rejected, SessionId};
use unisockets_signaling::identity::{KeyPair, PublicKey};

const NOW_MS: u64 = 1_700_000_000_000;

fn sender() -> PublicKey {
    KeyPair::from_seed(&[1; 32]).public()
}

fn content(counter: u32, sent_at_ms: u64) -> Content {
    Content { session: SessionId(5), counter, sent_at_ms, incarnation: None, offer: None, body: String::new() }
}

#[test]
fn an_envelope_from_the_end_of_time_is_refused_without_a_panic() {
    let mut freshness = Freshness::default();
    for sent_at_ms in [0, NOW_MS - 600_001, NOW_MS + 300_001, u64::MAX - 1, u64::MAX] {
        let refused = freshness.accept(NOW_MS, &sender(), &content(0, sent_at_ms));
        assert_eq!(refused, Err(Rejected::Replayed), "{sent_at_ms}");
    }
    assert_eq!(freshness.accept(NOW_MS, &sender(), &content(u32::MAX, NOW_MS)), Err(Rejected::Replayed));
    assert_eq!(freshness.accept(NOW_MS, &sender(), &content(0, NOW_MS)), Ok(()));
}

/// A session was once forgotten a quarter of an hour after its first envelope, and its last one accepted again.
#[test]
fn the_last_envelope_of_a_long_session_is_accepted_once() {
    let mut freshness = Freshness::default();
    assert_eq!(freshness.accept(NOW_MS, &sender(), &content(0, NOW_MS)), Ok(()));
    let late_ms = NOW_MS + 890_000;
    let late = content(1, late_ms);
    assert_eq!(freshness.accept(late_ms, &sender(), &late), Ok(()));
    assert_eq!(freshness.accept(late_ms + 20_000, &sender(), &late), Err(Rejected::Replayed));
}
