//! Messages of a link: the packets of a message lie side by side, and a probe is never a packet.

use unisockets_link::frame::{Probe, packets};

/// Runs one input.
pub fn run(data: &[u8]) {
    let (mut walked, mut broken) = (0, false);
    for packet in packets(data) {
        assert!(!broken, "nothing follows an error");
        match packet {
            Ok(packet) => {
                assert!(packet.len() >= 20, "a packet has a header");
                assert!(std::ptr::eq(packet, &data[walked..walked + packet.len()]), "packets lie side by side");
                walked += packet.len();
            }
            Err(_) => broken = true,
        }
    }
    assert!(walked <= data.len());
    assert_eq!(walked == data.len(), !broken, "without an error the lengths add up to the message");
    if let Some(probe) = Probe::parse(data) {
        assert_eq!(probe.emit(), data, "a probe reads back");
        assert!(walked == 0 && broken, "a probe is no packet");
    }
}
