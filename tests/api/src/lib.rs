//! Nothing but a place for the test that compares the public API of our crates with its committed text.
