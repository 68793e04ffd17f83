//! Forks of programs with threads: a child has the locks as they were, and no thread that would ever let go of those that
//! others held. So none is held while a program forks (pthread_atfork(3)).

use std::cell::RefCell;

use crate::{epoll, node, waiting};

/// The guards of one thread that is about to fork.
struct Held {
    /// Given back first: with the other one signals come again, whose handlers may want this one.
    _node: node::Guard,
    _watched: epoll::Guard,
}

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

extern "C" fn prepare() {
    let held = Held { _watched: epoll::hold(), _node: node::hold() };
    // A thread without storage of its own is ending; it does not fork.
    let _ = HELD.try_with(|place| place.replace(Some(held)));
}

extern "C" fn release() {
    let _ = HELD.try_with(|place| place.replace(None));
}

extern "C" fn release_child() {
    epoll::begin();
    waiting::begin();
    release();
}

extern "C" fn begin() {
    epoll::begin();
    // SAFETY: the three functions live as long as the library, and take and give back nothing but locks.
    unsafe {
        libc::pthread_atfork(Some(prepare), Some(release), Some(release_child));
    }
}

/// Runs when the library is loaded (elf(5), DT_INIT_ARRAY).
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;
