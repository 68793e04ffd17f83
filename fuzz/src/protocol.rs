//! What is said over signaling: frames, the server's room, and a member whose server lies.

use serde::de::DeserializeOwned;
use unisockets_signaling::protocol::{FromMember, FromServer, SignedLease, emit, parse};

use crate::script::Script;
use crate::{member, room};

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    match script.u8() % 3 {
        0 => {
            let frame = String::from_utf8_lossy(script.rest());
            read_back::<FromMember>(&frame);
            read_back::<FromServer>(&frame);
            if let Some(lease) = read_back::<SignedLease>(&frame) {
                let _ = lease.is_signed();
            }
        }
        1 => room::run(&mut script),
        _ => member::run(&mut script),
    }
}

fn read_back<T: DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(frame: &str) -> Option<T> {
    let message = parse::<T>(frame).ok()?;
    let again = emit(&message);
    match parse::<T>(&again) {
        Ok(read) => assert_eq!(read, message, "a message reads back"),
        Err(error) => panic!("what was emitted is no message: {error}: {again}"),
    }
    Some(message)
}
